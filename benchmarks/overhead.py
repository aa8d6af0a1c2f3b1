#!/usr/bin/env python3
"""What a callback adds to a training step, and how much of a core its thread takes.

Steps: the callbacks take turns within one fit, a few steps each, in a new random order every round,
so other load on the machine hits them all alike. A turn's time is its median step, which leaves out
what happens in few steps, such as logging. The table shows the median turn, and what a turn adds to
the bare turn of its round: the mean over the rounds, trimmed by a tenth at either end, with its
standard error.

Threads: the CPU time of reading the hardware once a second, as a share of one core. In the table of
steps it is spread evenly over all rows.

CodeCarbon's tracker is measured if it is installed; nvitop's callback on a GPU, if nvitop is older
than 1.7, which dropped it.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --rounds 2000
    python benchmarks/overhead.py --accelerators cuda
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor, ThroughputMonitor
from lightning.pytorch.loggers import CSVLogger
from small import WORDS, Small, accelerators, be_quiet
from torch.utils.data import DataLoader, Dataset

from lightning_lscore import LScore
from lightning_lscore.hardware.devices import probe_of
from lightning_lscore.hardware.sampler import Sampler

SETTLE = 3  # first steps of a turn, which are left out: caches, meters of the turn before


class Tokens(Dataset):
    """``n`` random sequences, of which 512 are different."""

    def __init__(self, n: int) -> None:
        self.n, self.rows = n, torch.randint(WORDS, (512, 16))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (self.rows[index % 512],)


class Turns(pl.Callback):
    """Give the Trainer one variant's callbacks at a time, and time its steps."""

    def __init__(self, variants: dict[str, list[pl.Callback]], steps: int, rounds: int) -> None:
        self.variants, self.steps, self.rounds = variants, steps, rounds
        self.times: dict[str, list[float]] = {name: [] for name in variants}
        self.order: list[str] = []
        self.seen: list[float] = []

    def on_train_start(self, trainer, pl_module):
        self.others = [c for c in trainer.callbacks if c is not self]
        self._next(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(time.perf_counter())
        if len(self.seen) == SETTLE + self.steps + 1:
            each = [b - a for a, b in itertools.pairwise(self.seen[SETTLE:])]
            self.times[self.turn].append(statistics.median(each) * 1e6)
            self._next(trainer)

    def on_train_end(self, trainer, pl_module):
        trainer.callbacks = [self, *self.others]

    def _next(self, trainer):
        self.seen.clear()
        self.order = self.order or random.sample(list(self.variants), len(self.variants))
        self.turn = self.order.pop()
        # A new list: Lightning is iterating over the old one.
        trainer.callbacks = [self, *self.variants[self.turn]]


def steps_table(
    accelerator: str, variants: dict[str, list[pl.Callback]], steps: int, rounds: int
) -> None:
    turns = Turns(variants, steps, rounds)
    n = (SETTLE + steps + 1) * rounds * len(variants)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=n,
            accelerator=accelerator,
            devices=1,
            callbacks=[turns, *(c for each in variants.values() for c in each)],
            logger=CSVLogger(folder, flush_logs_every_n_steps=10**9),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Small(), DataLoader(Tokens(8 * n), batch_size=8))
    print(
        f"\n{f'a step on {accelerator} with':32} {'median':>10} {'added':>10}        {'share':>8}"
    )
    for name, each in turns.times.items():
        bare = turns.times["nothing"]
        added = sorted(mine - base for mine, base in zip(each, bare, strict=True))
        cut = len(added) // 10
        kept = added[cut : len(added) - cut]
        mean, error = statistics.fmean(kept), statistics.stdev(kept) / len(kept) ** 0.5
        share = mean / statistics.median(bare)
        cells = f"{statistics.median(each):7.1f} us {mean:+7.1f} us +-{error:4.1f} {share:+8.1%}"
        print(f"{name:32} {cells}")


def thread_table(seconds: float) -> None:
    """Print the process's CPU time while only the thread runs."""
    print(f"\n{'a thread, once a second':32} {'of a core':>10}")
    for name, begin in (("LScore's sampler", our_thread), ("CodeCarbon's tracker", codecarbon)):
        try:
            stop = begin()
        except ImportError:
            print(f"{name:32} {'absent':>10}")
            continue
        time.sleep(2)  # leaves out what it does once, at its start
        cpu, start = time.process_time(), time.monotonic()
        time.sleep(seconds)
        share = (time.process_time() - cpu) / (time.monotonic() - start)
        stop()
        print(f"{name:32} {share:>10.3%}")


def our_thread() -> Callable[[], Any]:
    place = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    sampler = Sampler([probe_of(place)], interval=1.0)
    sampler.start()
    sampler.resume()
    return sampler.stop


def codecarbon() -> Callable[[], Any]:
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="DEU", measure_power_secs=1, save_to_file=False, log_level="critical"
    )
    tracker.start()
    return tracker.stop


def variants_on(accelerator: str) -> dict[str, list[pl.Callback]]:
    variants: dict[str, list[pl.Callback]] = {
        "nothing": [],
        "an empty callback": [pl.Callback()],  # the cost of Lightning's own calls
        "LScore": [LScore()],
        "Lightning's ThroughputMonitor": [ThroughputMonitor(batch_size_fn=lambda b: len(b[0]))],
        "Lightning's DeviceStatsMonitor": [DeviceStatsMonitor(cpu_stats=True)],
    }
    if accelerator == "cuda":
        with contextlib.suppress(ImportError):
            from nvitop.callbacks.lightning import GpuStatsLogger

            variants["nvitop's GpuStatsLogger"] = [GpuStatsLogger()]
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8, help="steps a turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=500, help="turns of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="for each thread (%(default)s)")
    parser.add_argument("--accelerators", nargs="+", default=accelerators())
    arguments = parser.parse_args()
    be_quiet()
    for accelerator in arguments.accelerators:
        steps_table(accelerator, variants_on(accelerator), arguments.steps, arguments.rounds)
    thread_table(arguments.seconds)


if __name__ == "__main__":
    main()
