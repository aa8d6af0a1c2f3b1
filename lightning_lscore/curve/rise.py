"""A held-out loss that rises: overfitting, and divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence

ABOVE = 3
"""Validations in a row above the lowest by more than noise: the loss has turned. Two are met by
chance too often: of 45 public fine-tunes one in fifteen ended early."""

DIVERGED = 0.1
"""The loss is above its lowest by this share of itself and perplexity by this share too, so that a
loss near 0 does not diverge by a hundredth."""


class Rise:
    """Count validations in a row whose loss is above its lowest, or that diverge."""

    def __init__(self) -> None:
        self.lowest = math.inf
        """Lowest ln T so far."""
        self._before = math.inf
        self._above = 0
        self._diverging = 0

    def update(self, ln_T: float, margin: float, *, expected: bool) -> bool:
        """Take in one validation; return whether its loss is the lowest so far.

        Args:
            ln_T: the held-out loss.
            margin: what it must be above its lowest to count, in nats.
            expected: whether a rise is to be expected, since the learning rate rose again.
        """
        lowest = ln_T < self.lowest
        if lowest:
            self.lowest = ln_T
        rise, finite = ln_T - self.lowest, math.isfinite(ln_T)
        above = not finite or (rise > margin and not expected)
        self._above = self._above + 1 if above else 0
        far = max(DIVERGED * self.lowest, math.log1p(DIVERGED))
        diverges = not finite or (rise > far and ln_T > self._before)
        self._diverging = self._diverging + 1 if diverges else 0
        self._before = ln_T if finite else self._before
        return lowest

    @property
    def diverges(self) -> bool:
        """Whether two validations in a row were far above the lowest and rising, or no numbers."""
        return self._diverging >= 2

    @property
    def is_beyond_noise(self) -> bool:
        """Whether :data:`ABOVE` validations in a row were above the lowest."""
        return self._above >= ABOVE

    def state_dict(self) -> list[float]:
        """Return plain numbers for a checkpoint."""
        return [self.lowest, self._before, self._above, self._diverging]

    def load_state_dict(self, state: Sequence[float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.lowest, self._before = float(state[0]), float(state[1])
        self._above, self._diverging = int(state[2]), int(state[3])
