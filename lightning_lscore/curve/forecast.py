"""Where L will bottom out: an estimate with an interval, from the curve so far.

:func:`predict` is pure, so the same numbers give the same answer on every rank. A curve that
supports no forecast gives an :class:`Unpredictable` with the reason instead of a
:class:`Prediction`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..equation.learning_rate import Decay
from ..equation.prediction import Prediction, Unpredictable
from ..equation.safe_numbers import exp
from .extrapolation import DRIFT, Extrapolation, extrapolation_of, newest_stretch
from .points import points_of, thinned

__all__ = ["FARTHEST", "LEAST", "predict", "thinned"]

LEAST = 6
"""Validations at distinct spendings: four for a line and its scatter, two to check it on."""

FARTHEST = 5.0
"""Farthest forecast, as a multiple of what is spent: from a fifth of the plan on, and no farther
without a plan. Over two doublings the interval is already wider than what is left to win."""

_STEPS = 24  # spendings from now to the horizon at which L is evaluated
_WIDEST = 0.15
"""Nats: interval of L that is still worth showing. Most runs have less than that left to win, and
wider ones held in one of four cases of public fine-tunes."""
_SAME = 0.002
"""Nats. Seeds of one speed run differ by 0.001 to 0.002 in their final loss: a spending whose L is
that near to the lowest may as well turn out to be the best."""


def predict(
    spent: Sequence[float],
    ln_T: Sequence[float],
    ln_f: Callable[[float], float],
    *,
    best_ln_L: float,
    best_spent: float,
    planned: float | None = None,
    counts: Sequence[float] | None = None,
    decay: Decay = "under way",
    since: float = 0.0,
) -> Prediction | Unpredictable:
    """Predict the best L of a run, and the spending that reaches it, from the curve so far.

    The loss is carried on as a line in bent spending, fitted to the newest half doubling ::

        ln T(s) = a + b · (s^q - 1) / q          (q = 0: a + b · ln s; E + B · s^-beta: q = -beta)
        ln L(s) = ln T(s) + ln f(s)              the lowest, up to the end of the plan

    The exponent q, which says how the slope changes, comes from the run's own past: lines through
    earlier stretches are carried on to now, and the q with which one arrives counts 1/v, where ::

        v = drift² · (1/d + d) + (what noise does to q)²          over d doublings of spending

    since a short stretch averages over little and an old one is out of date. q is their mean, with
    a prior of 0 ± 0.6; over the next h doublings its variance is that of the mean + drift²/h. The
    interval of ln T spans that of q, and the noise of the line and of one validation beside it.

    It holds where the learning rate goes on as in the fitted stretch, falling or standing still: q
    drifts less where the rate stands. A decay that has not begun brings more than the curve can
    show, and one that began within the stretch bends it, so neither is carried on. With the rate
    known to the end of their plans, the intervals of public runs held in 86 to 97 % of cases
    (benchmarks/validity.py).

    Learning curves as power laws: Hestness et al. 2017 (https://arxiv.org/abs/1712.00409). The bent
    axis: Box and Cox 1964 (https://doi.org/10.1111/j.2517-6161.1964.tb00553.x).

    Args:
        spent: at each validation, in any unit; counts from where it last fell.
        ln_T: held-out loss at each, in nats a token. NaN and infinity are skipped.
        ln_f: ln of the product of all factors once spending has grown by a multiple, from 1 to
            :data:`FARTHEST` at most, see :meth:`~lightning_lscore.Formula.ln_price`.
        best_ln_L: the lowest ln L so far.
        best_spent: what was spent at it, in the unit of ``spent``.
        planned: what will be spent at the end of the plan, in that unit; None without a plan.
        counts: of how many validations each is the mean, see :func:`thinned`. Default: one.
        decay: where the learning rate stands in its decay now.
        since: what had been spent when it first stood there, in the unit of ``spent``.

    Raises:
        ValueError: if ``spent``, ``ln_T`` and ``counts`` differ in length.

    >>> spent = range(1, 41)
    >>> ln_T = [2 + s**-0.5 for s in spent]
    >>> ln_L = [y + 0.05 * math.log(s) for s, y in zip(spent, ln_T)]
    >>> found = predict(
    ...     spent, ln_T, lambda growth: 0.05 * math.log(40 * growth),
    ...     best_ln_L=min(ln_L), best_spent=40, planned=80, decay="over",
    ... )
    >>> round(found.best_L, 1), round(math.exp(2 + 80**-0.5 + 0.05 * math.log(80)), 1)
    (10.3, 10.3)
    """
    points = points_of(spent, ln_T, counts)
    if len(points) < LEAST:
        return Unpredictable(
            reason=f"A forecast needs validations at {LEAST} spendings, got {len(points)} so far."
        )
    if why := _why_not(decay):
        return Unpredictable(reason=why)
    if since > 0 and math.log(since / spent[-1]) > newest_stretch(points)[0][0]:
        return Unpredictable(
            reason="The learning rate has gone its present way for too short a time."
        )
    forecast = extrapolation_of(points, DRIFT[decay])
    if isinstance(forecast, Unpredictable):
        return forecast

    to_plan = math.inf if planned is None else max(1.0, planned / spent[-1])
    horizon = min(to_plan, FARTHEST)
    best = best_spent / spent[-1], best_ln_L
    growths, low, middle, high = _ln_L_ahead(forecast, ln_f, horizon, best)
    if not all(map(math.isfinite, low + high)):
        return Unpredictable(reason="L so far, or carried on from here, is not a finite number.")
    if min(high) - min(low) > _WIDEST:
        return Unpredictable(
            reason=f"The interval of the best L spans more than {100 * math.expm1(_WIDEST):.0f} %."
        )

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


def _why_not(decay: Decay) -> str:
    """Why the learning rate allows no forecast, in words; empty where it does."""
    if decay == "ahead":
        return (
            "A decay of the learning rate is still ahead, and brings more than the curve so far "
            "can tell."
        )
    return "Nothing foretells the learning rate." if decay == "unknown" else ""


def _ln_L_ahead(
    forecast: Extrapolation,
    ln_f: Callable[[float], float],
    horizon: float,
    best: tuple[float, float],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return growths up to the horizon, and the low end, middle and high end of ln L at each.

    The first of them is the best so far.
    """
    growths, *ends = ([first] for first in (best[0], best[1], best[1], best[1]))
    for i in range(_STEPS + 1 if horizon > 1 else 0):
        growth = horizon ** (i / _STEPS)
        price = ln_f(growth)
        growths.append(growth)
        for ln_L, y in zip(ends, forecast.at(math.log(growth)), strict=True):
            ln_L.append(y + price)
    low, middle, high = ends
    return growths, low, middle, high


def _lowest(growths: Sequence[float], ln_L: Sequence[float], same: float) -> list[float]:
    """Return the growths at which ln L is within ``same`` of its lowest."""
    least = min(ln_L)
    return [g for g, y in zip(growths, ln_L, strict=True) if y <= least + same]
