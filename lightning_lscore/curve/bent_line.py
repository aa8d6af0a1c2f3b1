"""A line in bent spending: ln T = a + b · (s^q - 1)/q, fitted by least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..equation.safe_numbers import expm1
from .points import Point


@dataclass(frozen=True, kw_only=True)
class Line:
    """ln T = mean + slope · (x - x_mean), with x = (s^q - 1) / q and s = 1 at the line's end."""

    q: float
    end: float
    mean: float
    x_mean: float
    slope: float
    weight: float
    spread: float
    scatter: float

    def at(self, u: float) -> float:
        """Return ln T at ln s = u."""
        return self.mean + self.slope * (bent(u - self.end, self.q) - self.x_mean)

    def error(self, u: float) -> float:
        """Return the standard error of :meth:`at`, as a multiple of one validation's noise."""
        return math.hypot(
            self.weight**-0.5,
            (bent(u - self.end, self.q) - self.x_mean) / math.sqrt(self.spread),
        )


def bent(u: float, q: float) -> float:
    """Return (s^q - 1)/q at ln s = u; u for q = 0."""
    return expm1(q * u) / q if q else u


def fit_line(window: Sequence[Point], q: float) -> Line:
    """Fit a line by least squares; a point counts as often as validations went into it."""
    end = window[-1][0]
    x = [bent(u - end, q) for u, _, _ in window]
    weight = sum(n for _, _, n in window)
    x_mean = sum(n * a for a, (_, _, n) in zip(x, window, strict=True)) / weight
    mean = sum(n * y for _, y, n in window) / weight
    off = [(a - x_mean, y - mean, n) for a, (_, y, n) in zip(x, window, strict=True)]
    spread = sum(n * a * a for a, _, n in off)
    slope = sum(n * a * b for a, b, n in off) / spread
    return Line(
        q=q,
        end=end,
        mean=mean,
        x_mean=x_mean,
        slope=slope,
        weight=weight,
        spread=spread,
        scatter=sum(n * (b - slope * a) * (b - slope * a) for a, b, n in off),
    )
