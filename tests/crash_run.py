"""Run by test_reliability.py: two processes go on from a checkpoint, or one of them dies."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
from conftest import PlainLM, loader
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lscore import LScore


class Dies(pl.Callback):
    """The second rank, in the third step, at once."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            os._exit(1)


def main(folder: Path, checkpoint: str, steps: int, *, dies: bool) -> None:
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    lscore = LScore()
    save = ModelCheckpoint(folder / "two", "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=1,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        logger=False,
        callbacks=[lscore, save, *([Dies()] if dies else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(PlainLM(), loader(40), loader(4), ckpt_path=checkpoint or None)
    record = lscore.last_record
    said = {name: record.measurements.get(name) for name in ("tokens", "steps", "device_hours")}
    said["lost_device_hours"] = record.lost_device_hours
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), dies="dies" in sys.argv)
