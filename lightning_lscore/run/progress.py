"""What takes more than one validation: the slope of T, the spending to a level, the best L to come.

All of it is held as plain numbers, for a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..curve.forecast import predict, thinned
from ..equation.formula import Formula
from ..equation.learning_rate import DECAYS, Decay, LearningRate
from ..equation.level import first_reached, with_level
from ..equation.measurements import Measurements
from ..equation.prediction import Prediction, Unpredictable

CURVE_POINTS = 512  # of a curve in a checkpoint; a forecast asks for fewer


@dataclass
class Progress:
    """The validations of one run so far, under one formula."""

    previous: dict[str, float] = field(default_factory=dict)
    """``ln_T`` and what had been spent at the last validation with a finite perplexity."""
    reached: dict[str, float] = field(default_factory=dict)
    """What had been spent when T first fell to the formula's level; empty before."""
    reached_how: str = ""
    curve: list[list[float]] = field(default_factory=list)
    """Batches and ln T at each validation, or the means of several, and of how many."""
    best: list[float] = field(default_factory=list)
    """Lowest finite ln L so far and the batches at it; empty before."""
    decay: Decay = "unknown"
    """Where the learning rate stood in its decay at the last validation."""
    decay_since: float = 0.0
    """Batches at the first validation at which it stood there; 0: at all of them."""

    def take_in(self, formula: Formula, measured: Measurements, batches: int) -> Measurements:
        """Add a validation; call this once for each, in their order.

        Args:
            formula: the one in force.
            measured: at this validation.
            batches: trained on by then, the axis of the curve.

        Returns:
            The measurements with the elasticity and, where the formula has a level, the spending
            to it.
        """
        ln_T = formula.ln_T(measured)
        before, self.previous = self.previous, {}
        if ln_T is not None and math.isfinite(ln_T):
            self.previous = {**measured.spending(), "ln_T": ln_T}
        measured = self._with_elasticity(formula, measured, before)
        measured = self._with_level(formula, measured, before)
        self._extend_curve(formula, measured, float(batches))
        return measured

    def _with_elasticity(
        self, formula: Formula, measured: Measurements, before: Mapping[str, float]
    ) -> Measurements:
        """d ln T / d ln spent since the last validation, in the measure of H, else of D."""
        now, measure = self.previous, formula.spending_measure(measured)
        value, how = None, "unavailable: it takes two validations with a finite perplexity"
        if now.get(measure, 0) > before.get(measure, math.inf) > 0:
            change = now["ln_T"] - before["ln_T"]
            value = change / math.log(now[measure] / before[measure])
            how = f"measured: since the last validation, spending in {measure}"
        needed = formula.elasticity_needed(measured)
        told = "unavailable: the formula has no price here"
        if needed is not None:
            told = "measured: -d ln(f(D) f(A) f(H)) / d ln spent, by the formula in force"
        provenance = {**measured.provenance, "elasticity": how, "elasticity_needed": told}
        return replace(measured, elasticity=value, elasticity_needed=needed, provenance=provenance)

    def _with_level(
        self, formula: Formula, measured: Measurements, before: Mapping[str, float]
    ) -> Measurements:
        level = formula.level
        if level is None:
            return measured
        if not self.reached and self.previous:
            self.reached = first_reached(before, self.previous, math.log(level))
            between = before and before["ln_T"] > math.log(level)
            self.reached_how = (
                f"measured: perplexity {level:g} reached, interpolated between two validations"
                if between
                else f"estimated: at most, perplexity {level:g} was reached before a validation"
            )
        return with_level(measured, level, self.reached, self.reached_how)

    def _extend_curve(self, formula: Formula, measured: Measurements, batches: float) -> None:
        ln_T, ln_f = formula.ln_T(measured), formula.ln_price(measured)
        if ln_T is None or ln_f is None:
            return
        if self.curve and not math.isfinite(self.curve[-1][1]):
            self.curve.pop()  # it said no more than how far the run was
        self.curve.append([batches, ln_T, 1])
        if len(self.curve) > CURVE_POINTS:
            self.curve = thinned(self.curve)
        ln_L = ln_T + ln_f
        if math.isfinite(ln_L) and (not self.best or ln_L < self.best[0]):
            self.best = [ln_L, batches]

    def see_rate(self, rate: LearningRate, batches: int) -> None:
        """Take in the learning rate of a validation."""
        if rate.decay != self.decay:
            self.decay_since = float(batches) if len(self.curve) > 1 else 0.0
        self.decay = rate.decay

    def forecast(
        self, formula: Formula, measured: Measurements, planned: float | None
    ) -> Prediction | Unpredictable:
        """Predict the best L, if the learning rate's schedule goes on as in what was seen.

        Args:
            formula: the one in force.
            measured: at the newest validation, as :meth:`take_in` returned it.
            planned: batches at the end of the plan; None: no finite plan.
        """
        if formula.ln_T(measured) is None or formula.ln_price(measured) is None:
            return Unpredictable(reason="There is no L.")
        if not self.best:
            return Unpredictable(reason="L has not been a finite number yet.")

        def ln_f(growth: float) -> float:
            price = formula.ln_price(measured, growth)
            return math.nan if price is None else price

        spent, loss, counts = zip(*self.curve, strict=True)
        best_ln_L, best_spent = self.best
        return predict(
            spent,
            loss,
            ln_f,
            best_ln_L=best_ln_L,
            best_spent=best_spent,
            planned=planned,
            counts=counts,
            decay=self.decay,
            since=self.decay_since,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that do not change with this object."""
        return {
            "previous": dict(self.previous),
            "reached": dict(self.reached),
            "reached_how": self.reached_how,
            "curve": [list(point) for point in self.curve],
            "best": list(self.best),
            "decay": self.decay,
            "decay_since": self.decay_since,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Progress:
        """The inverse of :meth:`to_dict`; what is not there starts empty.

        Raises:
            ValueError, TypeError, AttributeError: if it is not what :meth:`to_dict` returned.
        """
        previous, reached = (
            {str(k): float(v) for k, v in state.get(name, {}).items()}
            for name in ("previous", "reached")
        )
        # Without a count, as it was before points were means, each is one validation.
        curve = [[float(x) for x in (*point, 1)[:3]] for point in state.get("curve", ())]
        best = [float(x) for x in state.get("best", ())]
        plain = all(0 <= spent < math.inf and n >= 1 for spent, _, n in curve)
        if not plain or len(best) not in (0, 2) or (previous and "ln_T" not in previous):
            raise ValueError(f"no course of a run: previous {previous}, best {best}")
        how = str(state.get("reached_how", ""))
        decay = state.get("decay", "unknown")
        if decay not in DECAYS:
            raise ValueError(f"expected a decay ({', '.join(DECAYS)}), got {decay!r}")
        return cls(
            previous=previous,
            reached=reached,
            reached_how=how,
            curve=curve,
            best=best,
            decay=decay,
            decay_since=float(state.get("decay_since", 0.0)),
        )
