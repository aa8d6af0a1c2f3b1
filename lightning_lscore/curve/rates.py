"""What the learning rate did before: whether it has risen again after it fell."""

from __future__ import annotations

from collections.abc import Sequence

from ..equation.learning_rate import SAME, LearningRate


class Rates:
    """The rates at the best L and at the lowest loss, where they had fallen by then.

    A rate that rises again, as at a warm restart, raises the loss for a while. A warm-up does not
    count: there the rate has not fallen yet.
    """

    def __init__(self) -> None:
        self._highest = 0.0
        self._at_best: float | None = None  # None: it had not fallen by then
        self._at_lowest: float | None = None

    def take_in(self, rate: LearningRate, *, best: bool, lowest: bool) -> None:
        """Take in the rate at a validation, which may have the best L or the lowest loss."""
        now = rate.now
        self._highest = max(self._highest, now or 0.0)
        fallen = now if now is not None and now < self._highest * (1 - SAME) else None
        if best:
            self._at_best = fallen
        if lowest:
            self._at_lowest = fallen

    def rose_since_best(self, rate: LearningRate) -> bool:
        """Whether the rate is higher than it had fallen to at the best L."""
        return _rose(self._at_best, rate.now)

    def rose_since_lowest(self, rate: LearningRate) -> bool:
        """Whether the rate is higher than it had fallen to at the lowest loss."""
        return _rose(self._at_lowest, rate.now)

    def state_dict(self) -> list[float | None]:
        """Return plain numbers for a checkpoint."""
        return [self._highest, self._at_best, self._at_lowest]

    def load_state_dict(self, state: Sequence[float | None]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._highest, self._at_best, self._at_lowest = state[0] or 0.0, state[1], state[2]


def _rose(before: float | None, now: float | None) -> bool:
    return before is not None and now is not None and now > before * (1 + SAME)
