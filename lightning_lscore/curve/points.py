"""The points of a curve, ln T over ln spending, and how a long curve is thinned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

DOUBLING = math.log(2)  # of spending, in ln spending
PER_DOUBLING = 16  # points after thinning: a few milliseconds however long the curve
_BACK = 6.0  # doublings of spending looked back on; what is older says little about now

Point = tuple[float, float, float]
"""ln(spent / spent now), ln T, and of how many validations it is the mean."""


def points_of(
    spent: Sequence[float], ln_T: Sequence[float], counts: Sequence[float] | None = None
) -> list[Point]:
    """Return the usable part of the curve, thinned to means over sixteenths of a doubling."""
    counts = [1] * len(spent) if counts is None else counts
    kept: list[Point] = []
    for s, y, n in zip(spent, ln_T, counts, strict=True):
        while kept and not kept[-1][0] < s:  # a counter that fell has started again
            kept.pop()
        if 0 < s < math.inf and math.isfinite(y):
            kept.append((s, y, n))
    bins: dict[int, list[Point]] = {}
    now = math.log(spent[-1]) if kept else 0.0
    for s, y, n in kept:
        u = math.log(s) - now
        if u > -_BACK * DOUBLING:
            # Edges at odd 32nds of a doubling: irrational ratios, which rounding puts nowhere else.
            bins.setdefault(round(PER_DOUBLING * u / DOUBLING), []).append((u, y, n))
    return [mean_point(b) for b in bins.values()]


def thinned(curve: list[list[float]]) -> list[list[float]]:
    """Return a curve of (spent, ln T, count) with its two closest points merged into their mean.

    In a long run each doubling of spending keeps as many points, and each validation its weight.
    The newest point stays as it is.
    """
    ratios = [b[0] / a[0] if a[0] > 0 else math.inf for a, b in pairwise(curve[:-1])]
    i = ratios.index(min(ratios))
    return [*curve[:i], [*mean_point(curve[i : i + 2])], *curve[i + 2 :]]


def mean_point(points: Sequence[Sequence[float]]) -> Point:
    """Return the mean of points, each weighted by its validations."""
    weight = sum(n for _, _, n in points)
    return (
        sum(u * n for u, _, n in points) / weight,
        sum(y * n for _, y, n in points) / weight,
        weight,
    )
