#!/usr/bin/env python3
"""What LScore adds to the start of a fit: from the call of ``fit`` to its first batch.

Fits with and without LScore take turns, and each pair gives one difference. The first pairs do not
count: what happens once in a process, such as measuring the device's peak, happens in them. The
exit status is 1 if the median difference exceeds the limit.

    python benchmarks/startup.py
    python benchmarks/startup.py --pairs 100 --accelerators cuda
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time

import lightning.pytorch as pl
import torch
from small import WORDS, Small, accelerators, be_quiet
from torch.utils.data import DataLoader, TensorDataset

from lightning_lscore import LScore

WARM_UP = 3  # pairs


class FirstBatch(pl.Callback):
    """Notes when the first batch begins, after LScore's hooks."""

    at = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.at = time.perf_counter()


def seconds_to_first_batch(accelerator: str, folder: str, *callbacks: pl.Callback) -> float:
    first = FirstBatch()
    data = DataLoader(TensorDataset(torch.randint(WORDS, (8, 16))), batch_size=8)
    trainer = pl.Trainer(
        max_steps=1,
        accelerator=accelerator,
        devices=1,
        callbacks=[*callbacks, first],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Small()
    begin = time.perf_counter()
    trainer.fit(model, data)
    return first.at - begin


def milliseconds(accelerator: str, pairs: int) -> dict[str, list[float]]:
    """Return how long the fits of each pair took to start, by whether LScore was among them."""
    rows: dict[str, list[float]] = {"without LScore": [], "with LScore": []}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(WARM_UP + pairs):
            for name in sorted(rows, reverse=bool(pair % 2)):
                callbacks = [LScore()] if name == "with LScore" else []
                seconds = seconds_to_first_batch(accelerator, folder, *callbacks)
                if pair >= WARM_UP:
                    rows[name].append(1e3 * seconds)
    rows["added"] = [b - a for a, b in zip(*rows.values(), strict=True)]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=30, help="of fits, at least 2 (%(default)s)")
    parser.add_argument("--limit", type=float, default=20, help="milliseconds (%(default)s)")
    parser.add_argument("--accelerators", nargs="+", default=accelerators())
    arguments = parser.parse_args()
    be_quiet()
    exceeded = False
    for accelerator in arguments.accelerators:
        title = f"{arguments.pairs} pairs of fits on {accelerator}"
        print(f"\n{title:28} {'median':>10} {'quartiles':>20}")
        for name, each in milliseconds(accelerator, arguments.pairs).items():
            low, middle, high = statistics.quantiles(each, n=4)
            print(f"{name:28} {middle:7.2f} ms {low:8.2f} - {high:6.2f} ms", flush=True)
        fits = middle <= arguments.limit
        exceeded |= not fits
        print(f"{'within' if fits else 'BEYOND'} the limit of {arguments.limit:g} ms")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
