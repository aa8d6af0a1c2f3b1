"""How much of a difference is noise: the scatter of one curve, and of runs that only repeat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median, pvariance

_MAD = 0.6745
"""Median of |x| of a normal variable, in its standard deviations."""


def scatter_of_curve(ln_T: Sequence[float]) -> float | None:
    """Return one validation's standard deviation about the smooth curve of a run, in nats.

    From third differences, median |Δ³ ln T| / (0.6745 · √20), since 1 + 9 + 9 + 1 = 20: a curve
    that bends has third differences near 0, where second ones would take its bend for noise. It
    knows nothing of other seeds.

    Returns:
        None for fewer than 5 finite values.
    """
    y = [value for value in ln_T if math.isfinite(value)]
    if len(y) < 5:
        return None
    return scatter_of_differences(third_differences(y))


def third_differences(y: Sequence[float]) -> list[float]:
    """Return the absolute third differences: of a level, a slope and a bend they are 0."""
    return [abs(d - 3 * c + 3 * b - a) for a, b, c, d in zip(y, y[1:], y[2:], y[3:], strict=False)]


def scatter_of_differences(third: Sequence[float]) -> float:
    """Return the standard deviation of one value, from at least one third difference."""
    return median(third) / (_MAD * math.sqrt(20))


def scatter_of_repeats(groups: Sequence[Sequence[float]]) -> float | None:
    """Return the standard deviation within groups of runs that repeat each other, pooled.

    Returns:
        None if no group has two values.
    """
    squares = sum(len(g) * pvariance(g) for g in groups if len(g) > 1)
    freedom = sum(len(g) - 1 for g in groups if len(g) > 1)
    return math.sqrt(squares / freedom) if freedom else None


def scatter_of_rates(spent: Sequence[float], done: Sequence[float]) -> float | None:
    """Return the relative standard deviation of what a unit of progress cost along a run.

    From 1.4826 times the median absolute deviation of ln(Δ spent / Δ done) from its median.

    Args:
        spent: device time for instance, at each validation.
        done: tokens for instance, at the same.

    Returns:
        None for fewer than 3 stretches.
    """
    pairs = list(zip(spent, done, strict=True))
    stretches = [
        math.log((b[0] - a[0]) / (b[1] - a[1]))
        for a, b in pairwise(pairs)
        if b[0] > a[0] and b[1] > a[1]
    ]
    if len(stretches) < 3:
        return None
    middle = median(stretches)
    return median(abs(x - middle) for x in stretches) / _MAD
