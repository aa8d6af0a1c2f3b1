"""Run by test_distributed.py: fits on the processes that a launcher starts."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
from conftest import PlainLM, loader
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from ranks_fits import Report, with_known_peak

from lightning_lscore import LScore


def fit(folder: Path, processes: int, **where) -> None:
    pl.seed_everything(0, verbose=False)
    lscore = LScore()
    callbacks = [
        EarlyStopping("L", patience=1),
        lscore,
        Report(folder / "rank", lscore),
        ModelCheckpoint(folder / "checkpoints", monitor="L"),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=10,
        default_root_dir=folder,
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        **where,
    )
    # Nothing is learned at rate 0, so any number of processes evaluates the same weights.
    model = PlainLM(lr=0.0)
    trainer.fit(model, loader(16, batch=8 // processes), loader(7, seed=1, batch=2))


def main(folder: Path, launcher: str) -> None:
    warnings.filterwarnings("error", "It is recommended to use")
    with_known_peak()
    if launcher == "lightning":
        fit(folder / launcher, 2, strategy="ddp", devices=2)
        return
    fit(folder / launcher, 2, strategy="ddp", devices=1, num_nodes=2)
    if os.environ["GROUP_RANK"] == "1":  # torchrun's number of this host
        platform.node = lambda: "another host"
    fit(folder / "two hosts", 2, strategy="ddp", devices=1, num_nodes=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
