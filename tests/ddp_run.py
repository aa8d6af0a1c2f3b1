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

# Here, not in main: a process that ddp_spawn starts only imports this file.
warnings.filterwarnings("error", "It is recommended to use")
with_known_peak()


def fit(folder: Path, strategy: str, devices: int, nodes: int = 1) -> None:
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
        strategy=strategy,
        devices=devices,
        num_nodes=nodes,
        max_epochs=10,
        default_root_dir=folder,
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    # Nothing is learned at rate 0, so any number of processes evaluates the same weights.
    model = PlainLM(lr=0.0)
    trainer.fit(model, loader(16, batch=8 // (nodes * devices)), loader(7, seed=1, batch=2))


def main(folder: Path, launcher: str, nodes: int, devices: int) -> None:
    if launcher == "spawn":
        fit(folder / "one", "auto", 1)
        for n in (2, devices):  # one after the other, from the same parent
            fit(folder / f"spawn {n}", "ddp_spawn", n)
        return
    name = f"{nodes} x {devices}"
    fit(folder / f"{launcher} {name}", "ddp", devices, nodes)
    if nodes == 1:
        return
    if os.environ["GROUP_RANK"] == "1":  # torchrun's number of this host
        platform.node = lambda: "another host"
    fit(folder / f"two hosts {name}", "ddp", devices, nodes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
