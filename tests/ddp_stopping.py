"""Run by test_stopping.py: a fit on two processes, each of which writes down why it stopped."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl
from conftest import PlainLM, loader

from lightning_lscore import Factor, Formula, LScore
from lightning_lscore.stopping import CostEarlyStopping


class Report(pl.Callback):
    def __init__(self, folder: Path, stopping: CostEarlyStopping) -> None:
        self.folder = folder
        self.stopping = stopping
        self.verdicts: list[dict] = []

    def on_validation_end(self, trainer, pl_module):
        self.verdicts.append({**asdict(self.stopping.verdict), "stop": self.stopping.verdict.stop})

    def on_train_end(self, trainer, pl_module):
        seen = {
            "step": trainer.global_step,
            "why": self.stopping.stopping_reason_message,
            "verdicts": self.verdicts,
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))


def main(folder: Path, **options) -> None:
    pl.seed_everything(0, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    stopping = CostEarlyStopping(**options)
    # The price is the clock's, which no two processes read alike.
    formula = Formula(H=Factor("device_hours", reference=1e-6, weight=0.1))
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp_fork",  # which spares the second process its imports
        devices=2,
        max_epochs=8,
        default_root_dir=folder,
        logger=False,
        callbacks=[stopping, LScore(formula), Report(folder, stopping)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(PlainLM(lr=0.0), loader(16, batch=4), loader(7, seed=1, batch=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
