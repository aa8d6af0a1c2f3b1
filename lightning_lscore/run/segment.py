"""A stretch of training on one process: its clock, its tokens and the devices it occupies."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..hardware.devices import Devices
from ..model.tokens import TokenCounter
from .arithmetic import Arithmetic
from .clock import Clock
from .epochs import Epochs
from .spending import Spending

READING_SECONDS = 0.5
"""How long a validation waits for the devices' readings at its beginning."""


class Segment:
    """Count while training runs, and stand still while it does not.

    A run has one segment for each fit: it begins when a fit starts or resumes, and ends with it.

    Args:
        devices: of the whole run; their sampler reads those of this process.
        before: what all processes had spent when the segment began.
        ranks: how many processes train together, each on batches of its own.
        counts: False on a peer of tensor parallelism, whose batches another process counts.
        batches_per_epoch: of one process, see :class:`Epochs`.
        arithmetic: what the model needs for a token, and since when.
        tokens: counts those of this process in the segment.
        price_per_device_hour: of one device; None: unknown.
        carbon_intensity: in g CO2-equivalent per kWh; None: unknown.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        devices: Devices,
        *,
        before: Spending,
        ranks: int,
        counts: bool = True,
        batches_per_epoch: float | Callable[[], float] = math.inf,
        arithmetic: Arithmetic,
        tokens: TokenCounter | None = None,
        price_per_device_hour: float | None = None,
        carbon_intensity: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.devices = devices
        self.tokens = tokens or TokenCounter()
        self.arithmetic = arithmetic
        self._before = before
        self._ranks = ranks
        self._counts = counts
        self.epochs = Epochs(batches_per_epoch)
        self._settled = before  # by all processes, at their last exchange
        self._mine_then = Spending()
        self._price = price_per_device_hour
        self._carbon_intensity = carbon_intensity
        self._now = now
        self._clock, self._wall = Clock(now), Clock(now)
        self._wall.resume()
        devices.sampler.start()

    def resume(self) -> None:
        """Continue the clocks and the sampler."""
        self._clock.resume()
        self.devices.sampler.resume()

    @property
    def batches(self) -> int:
        """Micro-batches of this process, including those before the segment."""
        return self._before.batches + self.tokens.batches

    @property
    def runs(self) -> bool:
        """Whether training is running."""
        return self._clock.runs

    def pause(self, *, wait: bool = True) -> None:
        """Stop the clock and the sampler, for a validation for instance.

        Args:
            wait: whether to wait for the GPU before reading the time.
        """
        if wait:
            _wait_for_gpu()  # once a validation
        self._clock.pause()
        self.devices.sampler.pause()

    def begin_step(self) -> None:
        """Mark the beginning of a step: some begin with a look at the model, or are counted."""
        self.arithmetic.begin_step(self.batches)

    def count(self, batch: Any, tokens: int | None = None) -> None:
        """Count a batch that was trained on, or just the number of its tokens."""
        if not self.tokens.batches:
            _wait_for_gpu()  # the first batch is looked at
        began = self._now()
        if self.arithmetic.step is not None:
            self._count_step(batch, tokens)
        elif tokens is None:
            self.tokens.add(batch)
        else:
            self.tokens.add_counted(tokens)
        if not self.tokens.has_function:
            # A function of the user's may wait for a device, which computes queued steps meanwhile.
            self._clock.leave_out(self._now() - began)

    def _count_step(self, batch: Any, tokens: int | None) -> None:
        if tokens is None:
            self.arithmetic.end_step(self.tokens.add_with_padding(batch))
        else:
            self.tokens.add_counted(tokens)
            self.arithmetic.end_step({0: tokens})

    def end_epoch(self) -> None:
        """Mark the end of an epoch: the next may have another length."""
        self.epochs.end(self.tokens.batches)

    def look(self) -> None:
        """Look whether the model has changed since the validation before. Once for each."""
        with self.uncharged():
            self.arithmetic.look(self.tokens.by_length, self.batches)

    @contextlib.contextmanager
    def uncharged(self) -> Iterator[None]:
        """Let what this process does inside of the ``with``, for LScore alone, cost no time."""
        self.tokens.by_length  # noqa: B018  # waits for a device, whose queued steps are training
        began = self._now()
        try:
            yield
        finally:
            self._clock.leave_out(self._now() - began)

    def stop(self) -> None:
        """End the sampler's thread without waiting for a device; the counts stay."""
        self.arithmetic.stop()
        self.tokens.close()
        self._clock.pause()
        self._wall.pause()
        self.devices.sampler.stop()

    def spending(self, *, wait: bool = True) -> Spending:
        """What this process has spent in the segment; time and capacity are the whole run's.

        Args:
            wait: whether to wait for the reading of the devices that the last pause asked for.
        """
        seconds, tokens = self._clock.seconds, self.tokens.total
        device_seconds, price = seconds * self.devices.count, self._price
        readings = self.devices.sampler.by_device(READING_SECONDS if wait else 0.0)
        intensity = self._carbon_intensity
        hardware = Spending(devices=readings).hardware
        kwh = hardware.use().energy_kwh or 0.0
        return Spending(
            tokens=tokens,
            samples=self.tokens.samples,
            model_flops=self.arithmetic.total(self.tokens.by_length),
            batches=self.tokens.batches,
            uncounted_batches=self.tokens.uncounted,
            epochs=self.epochs.after(self.tokens.batches),
            train_seconds=seconds,
            wall_seconds=self._wall.seconds,
            device_seconds=device_seconds,
            unpriced_seconds=device_seconds if price is None else 0.0,
            cost=0.0 if price is None else device_seconds / 3600 * price,
            capacity_flops=seconds * (self.devices.peak_flops or 0.0),
            unrated_joules=hardware.energy_joules if intensity is None else 0.0,
            emissions_kg=kwh * (intensity or 0.0) / 1000,
            devices=readings,
        )

    def numbers(self, mine: Spending) -> list[float]:
        """What this process adds to the sum over processes; equally long on each of them."""
        if not self._counts:  # each batch counts once
            mine = replace(mine, tokens=0, samples=0, model_flops=0.0)
        return mine.numbers(slots=max(map(len, self.devices.read_by)))

    def settle(self, mine: Spending, ranks: Sequence[Sequence[float]]) -> Spending:
        """What all processes have spent since the run began, from the numbers of each."""
        pairs = zip(ranks, self.devices.read_by, strict=True)
        everyone = [Spending.from_numbers(numbers, keys) for numbers, keys in pairs]
        self._mine_then = mine
        self._settled = self._before.then(Spending.over_ranks(everyone))
        return self._settled

    def total(self) -> Spending:
        """The same at this moment without an exchange, assuming that the others did as much.

        Exact for one process, and for several whose batches have the same number of tokens. Waits
        for no reading of a device: the next validation has it.
        """
        return self._settled.grown(self._mine_then, self.spending(wait=False), self._ranks)

    def messages(self) -> list[str]:
        """Warnings of the sampler's thread since the last call."""
        return self.devices.sampler.messages()

    def missing(self) -> Mapping[str, str]:
        """Why the sampler could not read something, by its name in a ``Reading``."""
        merged: dict[str, str] = {}
        for missing in self.devices.sampler.missing().values():
            merged.update(missing)
        return merged


def _wait_for_gpu() -> None:
    """Wait for the steps still queued on a GPU: they are training too, before the time is read."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
