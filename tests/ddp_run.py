"""Run by test_distributed.py: one fit on the processes that Lightning's own launcher starts."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
from conftest import PlainLM, loader
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_lscore import LScore


class Report(pl.Callback):
    """Each rank writes down what it saw at each validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[dict[str, float]] = []

    def on_validation_end(self, trainer, pl_module):
        if trainer.sanity_checking:
            return
        self.seen.append({k: v.item() for k, v in trainer.callback_metrics.items()})
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(self.seen))


def main(folder: Path, devices: int) -> None:
    pl.seed_everything(0, verbose=False)
    warnings.filterwarnings("error", "It is recommended to use")
    # Nothing is learned at rate 0, so any number of processes evaluates the same weights.
    checkpoint = ModelCheckpoint(folder / "checkpoints", monitor="L")
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp" if devices > 1 else "auto",
        devices=devices,
        max_epochs=10,
        default_root_dir=folder,
        logger=False,
        callbacks=[EarlyStopping("L", patience=1), LScore(), Report(folder), checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    trainer.fit(PlainLM(lr=0.0), loader(16, batch=8 // devices), loader(7, seed=1, batch=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
