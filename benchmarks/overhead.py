#!/usr/bin/env python3
"""What a callback adds to a training step: fits with and without it, in turns, in one process.

Shown are the median step, the median of what was added to the bare fit beside it, and that as a
share. A fit's start (devices, peak) and its validation are not in it: the clock runs from the end
of the tenth step to the end of the last.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --steps 3000 --rounds 15
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor, ThroughputMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_lscore import LScore

WARM_UP = 10  # steps


class Small(pl.LightningModule):
    """As cheap as a step can be, so that what is added shows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 32)
        self.head = torch.nn.Linear(32, 64)

    def training_step(self, batch, batch_idx):
        (ids,) = batch
        logits = self.head(self.embedding(ids[:, :-1]))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Stopwatch(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = time.perf_counter()
        if batch_idx == WARM_UP:
            self.start = now
        self.end = now


def fit(callbacks: list[pl.Callback], steps: int, folder: str) -> float:
    """Microseconds a step."""
    watch = Stopwatch()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[*callbacks, watch],
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TensorDataset(torch.randint(64, (8 * steps, 16)))
    trainer.fit(Small(), DataLoader(data, batch_size=8))
    return (watch.end - watch.start) / (steps - WARM_UP - 1) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500, help="steps a fit (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="fits of each (%(default)s)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    variants: dict[str, Callable[[], list[pl.Callback]]] = {
        "bare": list,
        "an empty callback": lambda: [pl.Callback()],  # what Lightning's own calls cost
        "LScore": lambda: [LScore()],
        "ThroughputMonitor": lambda: [ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]))],
        "DeviceStatsMonitor": lambda: [DeviceStatsMonitor(cpu_stats=True)],
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        for make in variants.values():
            fit(make(), arguments.steps, folder)  # imports and caches
        for _ in range(arguments.rounds):
            for name, make in variants.items():
                times[name].append(fit(make(), arguments.steps, folder))
    print(f"{'callback':20} {'step':>10} {'added':>10} {'share':>8}")
    for name, each in times.items():
        pairs = list(zip(each, times["bare"], strict=True))
        added = statistics.median(mine - bare for mine, bare in pairs)
        share = statistics.median(mine / bare - 1 for mine, bare in pairs)
        print(f"{name:20} {statistics.median(each):7.1f} us {added:+7.1f} us {share:+8.1%}")


if __name__ == "__main__":
    main()
