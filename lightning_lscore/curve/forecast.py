"""Where L will bottom out: an estimate with an interval from the curve so far, marked as such.

:func:`predict` is pure and holds plain numbers only; it knows no torch and no Trainer. The same
numbers give the same answer on every rank. A curve that supports no forecast gives an
:class:`Unpredictable` with a sentence in place of a :class:`Prediction`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..equation.prediction import Prediction, Unpredictable
from ..equation.safe_numbers import exp

LEAST = 6
"""Validations at distinct spendings: four for a line and its scatter, two to check it on."""

FARTHEST = 5.0
"""Farthest forecast, as a multiple of what is spent: from a fifth of the plan on, and no farther
without a plan. Over two doublings the interval is already wider than what is left to win."""

_Z = 1.645  # standard deviations from the middle of a normal to either end of its central 90 %
_STEPS = 24  # spendings from now to the horizon at which L is looked at
_DOUBLING = math.log(2)
_PER_DOUBLING = 16  # points after thinning: a few milliseconds however long the curve
_BACK = 6.0  # doublings of spending looked back on; what is older says little about now
_WINDOW = 0.5  # doublings of spending that a line is fitted to: the newest 30 % of the run
_LINE = 4  # least points of a line: two for itself, one for its bend, one for its scatter

_EXPONENTS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
_PAIRS = tuple(pairwise(_EXPONENTS))
_PRIOR = 0.6
"""Standard deviation of the exponent q before any evidence: 90 % lie between -1 (the loss settles
like 1/s) and 1 (a straight line in s, as a decaying rate can bring)."""
_DRIFT = 0.5
"""Standard deviation of q over a doubling. From a rate that is held (q about -0.5) to one that
decays (0 to 0.5), and from there to the end of the decay, it is one or two of them."""

_WIDEST = math.log(2)  # nats: interval of L that is still worth showing
_SAME = 0.002
"""Nats. Seeds of one speed run differ by 0.001 to 0.002 in their final loss: a spending whose L is
that near to the lowest may as well turn out to be the best."""


_Point = tuple[float, float, float]
"""ln(spent / spent now), ln T, and how many validations it is the mean of."""


def predict(
    spent: Sequence[float],
    ln_T: Sequence[float],
    ln_f: Callable[[float], float],
    *,
    best_ln_L: float,
    best_spent: float,
    planned: float | None = None,
    counts: Sequence[float] | None = None,
) -> Prediction | Unpredictable:
    """The best L of a run and the spending at which it is reached, from the curve so far.

    The loss is carried on as a line in bent spending, fitted to the newest half doubling ::

        ln T(s) = a + b · (s^q - 1) / q          (q = 0: a + b · ln s; E + B · s^-beta: q = -beta)
        ln L(s) = ln T(s) + ln f(s)              of which the lowest, up to the end of the plan

    The exponent q, which says how the slope changes, comes from the run's own past: lines through
    earlier stretches are carried on to now, and the q with which one arrives counts 1/v, where ::

        v = drift² · (1/d + d) + (what noise does to q)²          over d doublings of spending

    since a short way averages over little and a long one is out of date. q is their mean, with a
    prior of 0 ± 0.6; over the next h doublings its variance is that of the mean + drift²/h. The
    interval of ln T spans that of q, and the noise of the line and of one validation beside it.

    It knows nothing of the learning rate, and holds if the schedule goes on as in the stretch that
    was fitted. A decay that has not begun brings more than the curve before it can tell: cut at
    60 %, before their decay, public runs ended below the interval in three cases of four
    (benchmarks/validity.py). Whoever knows that a decay is still to come should not ask.

    Learning curves as power laws: Hestness et al. 2017 (https://arxiv.org/abs/1712.00409). The bent
    axis: Box and Cox 1964 (https://doi.org/10.1111/j.2517-6161.1964.tb00553.x).

    Args:
        spent: at each validation, in any unit; it counts from where it last began anew.
        ln_T: held-out loss at each, in nats a token. NaN and infinity are passed over.
        ln_f: ln of the product of all factors once spending has grown so many fold, see
            :meth:`~lightning_lscore.Formula.ln_price`. Asked from 1 to :data:`FARTHEST` at most.
        best_ln_L: the lowest ln L so far.
        best_spent: what was spent at it, in the unit of ``spent``.
        planned: what will be spent at the end of the plan, in that unit; None without a plan.
        counts: how many validations each is the mean of, see :func:`thinned`; default: one.

    Raises:
        ValueError: if ``spent``, ``ln_T`` and ``counts`` differ in length.

    >>> spent = range(1, 41)
    >>> ln_T = [2 + s**-0.5 for s in spent]
    >>> ln_L = [y + 0.05 * math.log(s) for s, y in zip(spent, ln_T)]
    >>> found = predict(
    ...     spent, ln_T, lambda growth: 0.05 * math.log(40 * growth),
    ...     best_ln_L=min(ln_L), best_spent=40, planned=80,
    ... )
    >>> round(found.best_L, 1), round(math.exp(2 + 80**-0.5 + 0.05 * math.log(80)), 1)
    (10.2, 10.3)
    """
    points = _points(spent, ln_T, counts)
    if len(points) < LEAST:
        return Unpredictable(
            reason=f"A forecast needs validations at {LEAST} spendings, got {len(points)} so far."
        )
    forecast = _forecast(points)
    if isinstance(forecast, Unpredictable):
        return forecast

    now = spent[-1]
    to_plan = math.inf if planned is None else max(1.0, planned / now)
    horizon = min(to_plan, FARTHEST)
    growths, low, middle, high = [best_spent / now], [best_ln_L], [best_ln_L], [best_ln_L]
    for i in range(_STEPS + 1 if horizon > 1 else 0):
        growth = horizon ** (i / _STEPS)
        price = ln_f(growth)
        growths.append(growth)
        for ln_L, y in zip((low, middle, high), forecast.at(math.log(growth)), strict=True):
            ln_L.append(y + price)
    if not all(map(math.isfinite, low + high)):
        return Unpredictable(reason="L so far, or carried on from here, is no finite number.")
    if min(high) - min(low) > _WIDEST:
        return Unpredictable(reason="All that can be told of the best L spans more than twofold.")

    same = max(forecast.noise, _SAME)
    likely = growths[middle.index(min(middle))]
    latest = max(_lowest(growths, low, same))
    if to_plan > FARTHEST and latest == growths[-1]:
        return Unpredictable(
            reason=f"The best L may lie beyond {FARTHEST:g} times what is spent: too far to tell."
        )
    return Prediction(
        best_L=exp(min(middle)),
        best_L_low=exp(min(low)),
        best_L_high=exp(min(high)),
        growth=likely,
        growth_low=min(likely, *_lowest(growths, high, same)),
        growth_high=max(likely, latest),
        horizon=horizon,
    )


def _lowest(growths: Sequence[float], ln_L: Sequence[float], same: float) -> list[float]:
    least = min(ln_L)
    return [g for g, y in zip(growths, ln_L, strict=True) if y <= least + same]


def thinned(curve: list[list[float]]) -> list[list[float]]:
    """A curve of (spent, ln T, count) with one point fewer: the mean of two where they lie closest.

    In a long run each doubling of spending so keeps as many points, and each validation its weight.
    The newest point stays as it is.
    """
    ratios = [b[0] / a[0] if a[0] > 0 else math.inf for a, b in pairwise(curve[:-1])]
    i = ratios.index(min(ratios))
    return [*curve[:i], [*_mean(curve[i : i + 2])], *curve[i + 2 :]]


def _points(
    spent: Sequence[float], ln_T: Sequence[float], counts: Sequence[float] | None = None
) -> list[_Point]:
    """The curve that can be used, thinned to means over sixteenths of a doubling."""
    counts = [1] * len(spent) if counts is None else counts
    kept: list[_Point] = []
    for s, y, n in zip(spent, ln_T, counts, strict=True):
        while kept and not kept[-1][0] < s:  # a counter that fell began anew
            kept.pop()
        if 0 < s < math.inf and math.isfinite(y):
            kept.append((s, y, n))
    bins: dict[int, list[_Point]] = {}
    now = math.log(spent[-1]) if kept else 0.0
    for s, y, n in kept:
        u = math.log(s) - now
        if u > -_BACK * _DOUBLING:
            # Edges at odd 32nds of a doubling: irrational ratios, which rounding puts nowhere else.
            bins.setdefault(round(_PER_DOUBLING * u / _DOUBLING), []).append((u, y, n))
    return [_mean(b) for b in bins.values()]


def _mean(points: Sequence[Sequence[float]]) -> _Point:
    weight = sum(n for _, _, n in points)
    return (
        sum(u * n for u, _, n in points) / weight,
        sum(y * n for _, y, n in points) / weight,
        weight,
    )


@dataclass(frozen=True, kw_only=True)
class _Line:
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
        """ln T at ln s = u."""
        return self.mean + self.slope * (_bent(u - self.end, self.q) - self.x_mean)

    def error(self, u: float) -> float:
        """Standard error of that, as a multiple of one validation's noise."""
        return math.hypot(
            self.weight**-0.5,
            (_bent(u - self.end, self.q) - self.x_mean) / math.sqrt(self.spread),
        )


def _bent(u: float, q: float) -> float:
    return math.expm1(q * u) / q if q else u


def _line(window: Sequence[_Point], q: float) -> _Line:
    """Least squares, in which a point counts as the validations that it is the mean of."""
    end = window[-1][0]
    x = [_bent(u - end, q) for u, _, _ in window]
    weight = sum(n for _, _, n in window)
    x_mean = sum(n * a for a, (_, _, n) in zip(x, window, strict=True)) / weight
    mean = sum(n * y for _, y, n in window) / weight
    off = [(a - x_mean, y - mean, n) for a, (_, y, n) in zip(x, window, strict=True)]
    spread = sum(n * a * a for a, _, n in off)
    slope = sum(n * a * b for a, b, n in off) / spread
    return _Line(
        q=q,
        end=end,
        mean=mean,
        x_mean=x_mean,
        slope=slope,
        weight=weight,
        spread=spread,
        scatter=sum(n * (b - slope * a) * (b - slope * a) for a, b, n in off),
    )


def _window(points: Sequence[_Point]) -> Sequence[_Point]:
    """The newest half doubling of them, or the newest few where they lie wide apart."""
    since = points[-1][0] - (_WINDOW + 1e-9) * _DOUBLING
    return points[min(len(points) - _LINE, sum(u < since for u, _, _ in points)) :]


def _noise(points: Sequence[_Point]) -> float:
    """Standard deviation of one validation, about lines through the newest stretches."""
    squares, freedom = 0.0, 0
    while len(points) >= _LINE and freedom < 8:  # enough for a steady estimate
        window = _window(points)
        squares += min(_line(window, q).scatter for q in _EXPONENTS)
        freedom += len(window) - 3
        points = points[: -len(window)]
    return math.sqrt(squares / freedom)


@dataclass(frozen=True, kw_only=True)
class _Forecast:
    """The line through the newest stretch, with exponent q ± 1/√precision, and the noise."""

    window: Sequence[_Point]
    line: _Line
    precision: float
    noise: float

    def at(self, u: float) -> tuple[float, float, float]:
        """ln T at ln(spent / spent now) = u >= 0: lower end, middle and upper end."""
        line = self.line
        ahead = max((u - line.end) / _DOUBLING, 1 / _PER_DOUBLING)
        off = _Z * math.sqrt(1 / self.precision + _DRIFT**2 / ahead)
        faster, slower = (_line(self.window, line.q + way * off).at(u) for way in (1, -1))
        noise = _Z * self.noise * math.hypot(1.0, line.error(u))
        y = line.at(u)
        return y - math.hypot(y - faster, noise), y, y + math.hypot(slower - y, noise)


def _forecast(points: Sequence[_Point]) -> _Forecast | Unpredictable:
    window, noise = _window(points), _noise(points)
    here = {q: _line(window, q) for q in _EXPONENTS}
    straight = here[0.0]
    if not straight.slope + 2 * noise / math.sqrt(straight.spread) < 0:
        return Unpredictable(reason="The loss is not falling by more than its noise.")
    past = _past(points, here, noise)
    if len(past) < 2:
        return Unpredictable(reason="The run is too short to check a forecast on its own past.")
    precision = 1 / _PRIOR**2 + sum(new / v for _, v, new in past)
    q = sum(new * found / v for found, v, new in past) / precision
    apart = sum(new * (found - q) * (found - q) / v for found, v, new in past)
    if not apart < _Z**2 * sum(new for *_, new in past):
        return Unpredictable(
            reason="The run's own past would have been forecast wrongly: the curve is too erratic."
        )
    return _Forecast(window=window, line=_line(window, q), precision=precision, noise=noise)


def _past(
    points: Sequence[_Point], here: Mapping[float, _Line], noise: float
) -> list[tuple[float, float, float]]:
    """Of stretches half a doubling apart: exponent, its variance, and the doublings it adds."""
    found: list[tuple[float, float, float]] = []
    last = points[-1][0]
    for k in range(len(points) - 1, _LINE - 1, -1):
        gap = (last - points[k - 1][0]) / _DOUBLING
        if gap >= 0.5 - 1e-9:
            found.append((*_arriving(_window(points[:k]), here, noise), min(1.0, gap)))
            last = points[k - 1][0]
    return found


def _arriving(
    stretch: Sequence[_Point], here: Mapping[float, _Line], noise: float
) -> tuple[float, float]:
    """The exponent with which a line through ``stretch`` arrives at the newest; its variance."""
    now = here[0.0].end
    there = {q: _line(stretch, q) for q in here}
    off = {q: there[q].at(now) - here[q].at(now) for q in here}  # falls with q as the loss does
    below, q = next(((a, b) for a, b in _PAIRS if off[b] <= 0), _PAIRS[-1])
    per_q = (off[below] - off[q]) / (q - below)
    if not per_q > 0:  # a rising stretch has no exponent
        return 0.0, math.inf
    d = (now - there[q].end) / _DOUBLING
    by_noise = noise * math.hypot(there[q].error(now), here[q].error(now)) / per_q
    return q + off[q] / per_q, _DRIFT**2 * (1 / d + d) + by_noise * by_noise
