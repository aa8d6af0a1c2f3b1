"""The learning rate at a validation, and what its schedule will still do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Decay: TypeAlias = Literal["ahead", "under way", "over", "unknown"]
"""Where the rate stands in its decay. "ahead": it will fall but does not yet, or still warms up;
"under way": it falls now; "over": it will not fall below what it is now; "unknown": nothing
foretells it."""

DECAYS: tuple[str, ...] = get_args(Decay)

SAME = 1e-3
"""Relative difference below which two rates of a schedule count as one."""


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """The learning rate at a validation."""

    now: float | None = None
    """Sum over the parameter groups; None: not known."""
    decay: Decay = "unknown"
    """What the rest of the schedule will do."""

    @classmethod
    def before(cls, now: float, ahead: Sequence[float]) -> LearningRate:
        """Return the rate ``now`` of a schedule that goes on as ``ahead`` tells.

        Args:
            now: the present rate.
            ahead: the rates to come up to the end of the plan, the next one first.

        >>> LearningRate.before(1.0, [1.0, 0.5, 0.1]).decay
        'ahead'
        >>> LearningRate.before(0.5, [0.1]).decay, LearningRate.before(0.1, [0.1, 0.1]).decay
        ('under way', 'over')
        >>> LearningRate.before(0.1, [0.5, 1.0, 1.0]).decay
        'ahead'
        """
        lowest = min(ahead, default=now)
        if lowest > now * (1 + SAME):  # a warm-up; at the bottom of a cycle it comes back to now
            return cls(now=now, decay="ahead")
        if not lowest < now * (1 - SAME):
            return cls(now=now, decay="over")
        return cls(now=now, decay="under way" if ahead[0] < now else "ahead")
