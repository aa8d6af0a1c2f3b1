"""The rule by which Lightning's training loop ends, without Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Lightning's training loop, as far as it decides when a run ends.

    An epoch ends after ``length`` batches. The optimiser steps at every ``accumulate``-th batch of
    an epoch and at its last one. The run ends after ``max_epochs`` epochs, or at the batch with
    step ``max_steps`` (``fit_loop.py`` and ``training_epoch_loop.py`` of Lightning 2.5 and 2.6).

    >>> loop = Loop(length=5, max_steps=10, accumulate=lambda epoch: 4)
    >>> loop.batches_to_come()  # two steps an epoch
    25.0
    """

    length: float = math.inf
    """Batches of an epoch."""
    max_epochs: float = math.inf
    max_steps: float = math.inf
    accumulate: Callable[[int], int] = lambda epoch: 1
    """Epoch -> batches of a step."""
    same_from: int = 0
    """The first epoch from which on ``accumulate`` does not change."""
    last_steps: bool = True
    """Whether the last batch of an epoch steps: not where the strategy accumulates by itself."""
    epoch: int = 0
    """Epochs behind us."""
    batch: int = 0
    """Batches of the next one behind us."""
    step: int = 0
    """Steps behind us."""

    def batches_to_come(self) -> float:
        """Return the batches until the run ends; infinite if it does not."""
        loop, behind = self, 0.0
        while loop.step < loop.max_steps and loop.epoch < loop.max_epochs:
            if loop.batch == 0 and loop.epoch >= loop.same_from:
                return behind + loop._batches_of_like_epochs()
            size, rest = loop.accumulate(loop.epoch), loop.length - loop.batch
            left, steps = loop.max_steps - loop.step, loop._steps_until_its_end(size)
            if left <= steps or math.isinf(rest):
                last = min((loop.batch // size + left) * size, loop.length)
                return behind + last - loop.batch
            behind += rest
            loop = replace(loop, epoch=loop.epoch + 1, batch=0, step=loop.step + int(steps))
        return behind

    def _batches_of_like_epochs(self) -> float:
        size, left = self.accumulate(self.epoch), self.max_steps - self.step
        steps, epochs = self._steps_until_its_end(size), self.max_epochs - self.epoch
        if math.isinf(self.length):
            return left * size
        if steps and math.isfinite(left):
            whole = (left - 1) // steps  # epochs before the one with the last step
            if whole < epochs:
                return whole * self.length + min((left - whole * steps) * size, self.length)
        return epochs * self.length

    def _steps_until_its_end(self, size: int) -> float:
        if math.isinf(self.length):
            return math.inf
        ends_within = self.last_steps and self.length % size > 0 and self.batch < self.length
        return self.length // size - self.batch // size + ends_within
