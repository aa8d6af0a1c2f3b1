"""A curve carried on past its end, with an interval learned from its own past.

Lines through earlier stretches of the curve, carried on to its newest, show which exponent q of
:mod:`.bent_line` would have been right, and how far it scatters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..equation.prediction import Unpredictable
from .bent_line import Line, fit_line
from .points import DOUBLING, PER_DOUBLING, Point

_Z = 1.645  # standard deviations from the middle of a normal to either end of its central 90 %
_WINDOW = 0.5  # doublings of spending that a line covers: the newest 30 % of the run
_LINE = 4  # fewest points of a line: two for itself, one for its bend, one for its scatter

EXPONENTS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
_PAIRS = tuple(pairwise(EXPONENTS))
_PRIOR = 0.6
"""Standard deviation of the exponent q before any evidence: 90 % lie between -1 (the loss settles
like 1/s) and 1 (a straight line in s, as a decaying rate can bring)."""
DRIFT = {"under way": 0.38, "over": 0.15}
"""Standard deviation of q over a doubling, by where the learning rate stands in its decay. From
-0.5 early in a cosine to 0.5 at its end q moves by two or three of them; while the rate stands it
hardly moves. On the cosines of the OLMo ladder and of MultiPowerLaw 90 % intervals then hold about
as often as they say; with 0.5 all of them held, with 0.2 half."""


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """The line through the newest stretch, with exponent q ± 1/√precision, and the noise."""

    window: Sequence[Point]
    line: Line
    precision: float
    noise: float
    drift: float

    def at(self, u: float) -> tuple[float, float, float]:
        """Return the low end, middle and high end of ln T at ln(spent / spent now) = u >= 0."""
        line = self.line
        ahead = max((u - line.end) / DOUBLING, 1 / PER_DOUBLING)
        off = _Z * math.sqrt(1 / self.precision + self.drift**2 / ahead)
        faster, slower = (fit_line(self.window, line.q + way * off).at(u) for way in (1, -1))
        noise = _Z * self.noise * math.hypot(1.0, line.error(u))
        y = line.at(u)
        return y - math.hypot(y - faster, noise), y, y + math.hypot(slower - y, noise)


def extrapolation_of(points: Sequence[Point], drift: float) -> Extrapolation | Unpredictable:
    """Return the curve's continuation, or why it has none.

    Args:
        points: of the curve.
        drift: standard deviation of q over a doubling, of :data:`DRIFT`.
    """
    window, noise = newest_stretch(points), noise_of(points)
    here = {q: fit_line(window, q) for q in EXPONENTS}
    straight = here[0.0]
    if not straight.slope + 2 * noise / math.sqrt(straight.spread) < 0:
        return Unpredictable(reason="The loss is not falling by more than its noise.")
    past = exponents_of_the_past(points, here, noise, drift)
    if len(past) < 2:
        return Unpredictable(reason="The run is too short to check a forecast on its own past.")
    precision = 1 / _PRIOR**2 + sum(new / v for _, v, new in past)
    q = sum(new * found / v for found, v, new in past) / precision
    apart = sum(new * (found - q) * (found - q) / v for found, v, new in past)
    if not apart < _Z**2 * sum(new for *_, new in past):
        return Unpredictable(
            reason="The run's own past would have been forecast wrongly: the curve is too erratic."
        )
    return Extrapolation(
        window=window, line=fit_line(window, q), precision=precision, noise=noise, drift=drift
    )


def exponents_of_the_past(
    points: Sequence[Point], here: Mapping[float, Line], noise: float, drift: float
) -> list[tuple[float, float, float]]:
    """Return what stretches half a doubling apart say of the exponent, newest first.

    Returns:
        For each stretch: the exponent, its variance, and how many doublings the stretch adds.
    """
    found: list[tuple[float, float, float]] = []
    last = points[-1][0]
    for k in range(len(points) - 1, _LINE - 1, -1):
        gap = (last - points[k - 1][0]) / DOUBLING
        if gap >= 0.5 - 1e-9:
            found.append(
                (*arriving_exponent(newest_stretch(points[:k]), here, noise, drift), min(1.0, gap))
            )
            last = points[k - 1][0]
    return found


def arriving_exponent(
    stretch: Sequence[Point], here: Mapping[float, Line], noise: float, drift: float
) -> tuple[float, float]:
    """Return the exponent with which a line through ``stretch`` arrives at now, and its variance.

    Args:
        stretch: points of the past.
        here: the lines through the newest stretch, by exponent.
        noise: standard deviation of one validation, in nats.
        drift: standard deviation of q over a doubling.
    """
    now = here[0.0].end
    there = {q: fit_line(stretch, q) for q in here}
    off = {q: there[q].at(now) - here[q].at(now) for q in here}  # falls with q as the loss does
    below, q = next(((a, b) for a, b in _PAIRS if off[b] <= 0), _PAIRS[-1])
    per_q = (off[below] - off[q]) / (q - below)
    if not per_q > 0:  # a rising stretch has no exponent
        return 0.0, math.inf
    d = (now - there[q].end) / DOUBLING
    by_noise = noise * math.hypot(there[q].error(now), here[q].error(now)) / per_q
    return q + off[q] / per_q, drift**2 * (1 / d + d) + by_noise * by_noise


def newest_stretch(points: Sequence[Point]) -> Sequence[Point]:
    """Return the newest half doubling of spending, or the newest few points if they are sparse."""
    since = points[-1][0] - (_WINDOW + 1e-9) * DOUBLING
    return points[min(len(points) - _LINE, sum(u < since for u, _, _ in points)) :]


def noise_of(points: Sequence[Point]) -> float:
    """Return one validation's standard deviation about lines through the newest stretches."""
    squares, freedom = 0.0, 0
    while len(points) >= _LINE and freedom < 8:  # enough for a steady estimate
        window = newest_stretch(points)
        squares += min(fit_line(window, q).scatter for q in EXPONENTS)
        freedom += len(window) - 3
        points = points[: -len(window)]
    return math.sqrt(squares / freedom)
