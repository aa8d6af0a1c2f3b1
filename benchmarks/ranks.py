#!/usr/bin/env python3
"""What LScore adds to a validation on several processes: validations with and without it in turn.

One fit runs on processes that share this machine's CPU and communicate through gloo; LScore sits
out every second validation. All processes start a validation together, and the last one to finish
ends it. The table shows medians over the pairs, and two parts of what LScore adds: Lightning's
``self.log`` of some twenty values, and the exchange, LScore's one collective call, which includes
the wait for the slowest process.

A validation has few, small batches: the cost of the tokens, which is the same on any number of
processes, stays small beside the rest.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --processes 2 --validations 100
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from small import WORDS, Small, be_quiet
from torch.utils.data import DataLoader, TensorDataset

from lightning_lscore import LScore
from lightning_lscore.run import processes

WARM_UP = 3  # pairs


class Validated(Small):
    def validation_step(self, batch, batch_idx):
        (ids,) = batch
        return {"logits": self(ids), "labels": ids}


class EverySecond(LScore):
    """Ignores every second validation."""

    on = True
    seconds_to_log: list[float]

    def on_validation_start(self, *hook):
        self.on = not self.on
        if self.on:
            super().on_validation_start(*hook)

    def on_validation_batch_start(self, *hook):
        if self.on:
            super().on_validation_batch_start(*hook)

    def on_validation_batch_end(self, *hook):
        if self.on:
            super().on_validation_batch_end(*hook)

    def on_validation_epoch_end(self, *hook):
        if self.on:
            super().on_validation_epoch_end(*hook)

    def on_validation_end(self, *hook):
        if self.on:
            super().on_validation_end(*hook)

    def _log(self, *values):
        begin = time.perf_counter()
        super()._log(*values)
        self.seconds_to_log.append(time.perf_counter() - begin)


class Start(pl.Callback):
    """Its hooks run before LScore's."""

    at = 0.0

    def on_validation_start(self, trainer, pl_module):
        if dist.is_initialized():
            dist.barrier()
        self.at = time.perf_counter()


class Stop(pl.Callback):
    """Its hooks run after LScore's."""

    def __init__(self, start: Start, lscore: EverySecond) -> None:
        self.start = start
        self.lscore = lscore
        self.seconds: list[float] = []
        self.exchanges: list[float] = []

    def on_fit_start(self, trainer, pl_module):
        self.lscore.seconds_to_log = []
        gather = processes.gather_numbers

        def timed(*arguments):
            begin = time.perf_counter()
            gathered = gather(*arguments)
            self.exchanges.append(time.perf_counter() - begin)
            return gathered

        processes.gather_numbers = timed

    def on_validation_end(self, trainer, pl_module):
        if dist.is_initialized():
            dist.barrier()
        self.seconds.append(time.perf_counter() - self.start.at)

    def on_train_end(self, trainer, pl_module):
        if not trainer.is_global_zero:
            return
        bare, ours = self.seconds[2 * WARM_UP :: 2], self.seconds[2 * WARM_UP + 1 :: 2]
        rows = {
            "without LScore": bare,
            "with LScore": ours,
            "added": [b - a for a, b in zip(bare, ours, strict=True)],
            "  of it, logging": self.lscore.seconds_to_log[WARM_UP:],
            "  of it, the exchange": self.exchanges[WARM_UP:],
        }
        print(f"{trainer.world_size} processes, {os.cpu_count()} CPUs, {len(bare)} pairs")
        print(f"{'':22} {'median':>10} {'quartiles':>19}")
        for name, each in rows.items():
            low, middle, high = (1e3 * s for s in statistics.quantiles(each, n=4))
            print(f"{name:22} {middle:7.2f} ms {low:7.2f} - {high:6.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--validations", type=int, default=50, help="with LScore (%(default)s)")
    parser.add_argument("--batches", type=int, default=1, help="a process validates (%(default)s)")
    arguments = parser.parse_args()
    n = arguments.processes
    be_quiet()
    data = TensorDataset(torch.randint(WORDS, (4 * n * arguments.batches, 16)))
    start, lscore = Start(), EverySecond()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=2 * (arguments.validations + WARM_UP),
            accelerator="cpu",
            devices=n,
            strategy="ddp_fork" if n > 1 else "auto",
            callbacks=[start, lscore, Stop(start, lscore)],
            default_root_dir=folder,
            logger=False,
            num_sanity_val_steps=0,
            limit_train_batches=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Validated(), DataLoader(data, batch_size=4), DataLoader(data, batch_size=4))


if __name__ == "__main__":
    main()
