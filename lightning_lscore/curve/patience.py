"""When to stop: a rule that counts money instead of validations.

:class:`Patience` is pure and holds plain numbers only. At each validation it takes the two parts of
ln L, perplexity and price (``Formula.ln_price``), and how much of the plan is spent, and returns a
:class:`Verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from .verdict import Verdict, reason_of

__all__ = ["NOISE_WINDOW", "Patience", "Verdict"]

NOISE_WINDOW = 20
"""How many second differences of ln T the noise is estimated from: enough for a steady median, few
enough to follow a curve whose noise shrinks while the learning rate decays."""

HISTORY = 512
"""How many of a plan's validations are kept at most for the outlook; between two of them it
interpolates."""

_SIGMA = 0.6745 * math.sqrt(6)
"""Median of |second difference| of independent normal noise, in its standard deviations: the second
difference has variance 1 + 4 + 1, and half of a normal lies within 0.6745 sd."""


class Patience:
    """Stop when the price has risen by more than the patience, or when the rest cannot pay.

    With ln L = ln T + ln f, the perplexity and its price, and "best" the validation of lowest L,
    it stops after at least ``validations`` validations without improvement, if either ::

        ln f(now) - ln f(best) >= tolerance + luck            (the patience is over)

        [ln T(then) - ln T(now)] - [ln f(end) - ln f(now)] - [ln L(now) - ln L(best)]
                                                       + luck < tolerance   (the rest is hopeless)

    where ``end`` is the end of the plan, ``then`` is as far behind as the end is ahead,
    spent(then) = 2 · spent(now) - planned, and ::

        luck = certainty · s · (1 + 2/n)
        s    = median |ln T(i) - 2 ln T(i-1) + ln T(i-2)| / (0.6745 · √6)   over the last n <= 20

    *Patience.* The left side is what was paid since the best, in the currency of L: if T stands
    still, L is now that much worse. It is a difference of prices, not a ratio of spendings. A run
    that starts from a trained model, whose spending at the best L may be 0, is thus no special
    case, and the rule means the same for every weight, measure and unit. If time is free (all
    weights 0) the price never rises.

    *Outlook.* Losses fall ever slower, so the rest of the plan buys no more than the last stretch
    of the same length did. That, less what the rest costs and what L has already lost, bounds what
    can still be won. The outlook is unknown until half of the plan is spent, or without a plan.

    *Tolerance* is the price that you are willing to pay, or the gain that you are willing to leave:
    half of the 1 % of L within which a run should end. *Luck* waits out noise: the best L is a
    lucky reading, about two standard deviations below the curve, and one that fails to beat it may
    lie as far above. Within ``certainty`` = 4 of them "no improvement" proves nothing. s is the
    scatter of the run's own validations; 1 + 2/n allows for a median of few.

    The rule cannot know the future of the learning rate: a decay lowers the loss late, and a
    plateau before it looks like the end. Pass ``armed=False`` while a decay is still to come.

    *Ratio.* A plain rule instead: stop once ``ratio`` more has been spent than at the best L. On
    public training runs this gives up too early if the spending at the best L was small, as it is
    when a run starts from a trained model.

    Args:
        tolerance: in nats, > 0. 0.005: 0.5 % of L.
        certainty: how many standard deviations of noise to wait out, >= 0.
        validations: least number of validations without improvement, >= 1. With 2, one odd
            validation decides nothing.
        ratio: > 0; 0.25: stop when 25 % more has been spent since the best L, whatever it cost.
            ``tolerance`` and ``certainty`` then have no effect. None: the rule above.

    Raises:
        ValueError: for arguments outside these ranges.

    >>> patience = Patience(certainty=0)
    >>> for ln_T, ln_f in [(3.00, -0.020), (2.95, -0.010), (2.95, -0.006), (2.95, -0.004)]:
    ...     verdict = patience.update(ln_T=ln_T, ln_f=ln_f)
    >>> verdict.stop, verdict.validations, round(verdict.waited, 3)
    (True, 2, 0.006)
    """

    def __init__(
        self,
        tolerance: float = 0.005,
        *,
        certainty: float = 4.0,
        validations: int = 2,
        ratio: float | None = None,
    ) -> None:
        if not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance: expected nats > 0 (0.005 = 0.5 %), got {tolerance!r}.")
        if not 0 <= certainty < math.inf:
            raise ValueError(f"certainty: expected standard deviations >= 0, got {certainty!r}.")
        if isinstance(validations, bool) or not isinstance(validations, int) or validations < 1:
            raise ValueError(f"validations: expected a whole number >= 1, got {validations!r}.")
        if ratio is not None and not 0 < ratio < math.inf:
            raise ValueError(f"ratio: expected a share > 0 (0.25 = 25 % more), got {ratio!r}.")
        self.tolerance = float(tolerance)
        self.certainty = float(certainty)
        self.validations = validations
        self.ratio = ratio
        self.reset()

    def reset(self) -> None:
        """Forget every validation, for another run or another formula."""
        self.best_ln_L = math.inf
        """Lowest ln L so far, infinite before the first finite one."""
        self._ln_f_at_best: float | None = None
        self._spent_at_best: float | None = None
        self._since_best = 0
        self._recent: list[float] = []  # ln T, newest last
        self._history: list[list[float]] = []  # [spent, ln T], as far back as "then" can reach

    def update(
        self,
        *,
        ln_T: float,
        ln_f: float,
        spent: float | None = None,
        planned: float | None = None,
        ln_f_at_end: float | None = None,
        armed: bool = True,
    ) -> Verdict:
        """Take in one validation and return the verdict.

        Args:
            ln_T: ln perplexity, the held-out loss in nats a token. NaN and infinity count as
                no improvement.
            ln_f: ln of the product of all factors, ln f(D) + ln f(A) + ln f(H).
            spent: spending since the start of the run, in tokens for instance. ``spent``,
                ``planned`` and ``ln_f_at_end`` give the outlook; without them only the patience
                counts. With ``ratio``, the ratio is of ``spent``.
            planned: spending at the end of the plan, in the unit of ``spent``.
            ln_f_at_end: ln f at the end of the plan, see :meth:`Formula.ln_price`.
            armed: whether the run may stop now. False while the learning rate is still to decay;
                the validation counts all the same.

        Raises:
            ValueError: if ``ln_f`` is NaN or +infinity (-infinity is the price of having spent
                nothing under a plain power, c = 0), or ``spent`` is missing for a ``ratio``.
        """
        if self.ratio is not None and spent is None:
            raise ValueError("spent: expected a number to take the ratio of, got None.")
        if math.isnan(ln_f) or ln_f == math.inf:
            raise ValueError(f"ln_f: expected a number, got {ln_f!r}; check the formula's factors.")
        ln_L = ln_T + ln_f
        improved = self._keep_best(ln_L, ln_f, spent)
        assert self._ln_f_at_best is not None
        # -inf - -inf is NaN
        paid = 0.0 if ln_f == self._ln_f_at_best else ln_f - self._ln_f_at_best
        if math.isfinite(ln_T):
            self._recent = [*self._recent[-NOISE_WINDOW - 1 :], float(ln_T)]
        noise, n = self._noise()
        luck = self.certainty * noise * (1 + 2 / max(n, 1))

        waited, patience, outlook = paid, self.tolerance + luck, None
        if self.ratio is not None:
            assert spent is not None
            waited, patience = _ln_ratio(spent, self._spent_at_best), math.log1p(self.ratio)
        elif spent is not None and planned is not None and math.isfinite(ln_T):
            bought = self._bought(float(spent), float(planned), float(ln_T))
            if bought is not None and ln_f_at_end is not None:
                outlook = bought - (ln_f_at_end - ln_f) - (ln_L - self.best_ln_L) + luck
                outlook = None if math.isnan(outlook) else outlook

        enough = self._since_best >= self.validations
        impatient = enough and waited >= patience
        hopeless = enough and outlook is not None and outlook < self.tolerance
        verdict = Verdict(
            stop=armed and (impatient or hopeless),
            improved=improved,
            paid=paid,
            waited=waited,
            patience=patience,
            outlook=outlook,
            validations=self._since_best,
            noise=noise,
            reason="",
        )
        what = "price" if self.ratio is None else "spending"
        return replace(verdict, reason=reason_of(verdict, impatient, hopeless, armed, what))

    def _keep_best(self, ln_L: float, ln_f: float, spent: float | None) -> bool:
        """Keep this validation as the best if it is; return whether it is."""
        improved = ln_L < self.best_ln_L
        if improved:
            self.best_ln_L = float(ln_L)
            self._since_best = 0
        else:
            self._since_best += 1
        # Without a finite L so far, waiting starts at the first validation.
        if improved or self._ln_f_at_best is None:
            self._ln_f_at_best, self._spent_at_best = float(ln_f), spent
        return improved

    def _noise(self) -> tuple[float, int]:
        """Return the scatter s, and from how many second differences it was estimated."""
        x = self._recent
        second = [abs(a - 2 * b + c) for a, b, c in zip(x, x[1:], x[2:], strict=False)]
        return (median(second) / _SIGMA if second else 0.0), len(second)

    def _bought(self, spent: float, planned: float, ln_T: float) -> float | None:
        """Return by how much ln T fell over a stretch as long as the one that is left."""
        past = [p for p in self._history if p[0] < spent]  # a counter that fell has started again
        then = 2 * spent - planned
        while len(past) > 1 and past[1][0] <= then:
            past.pop(0)
        far_enough = not past or spent - past[-1][0] >= planned / HISTORY
        self._history, past = past, [*past, [spent, ln_T]]
        if far_enough:
            self._history = past
        if not past[0][0] <= then < spent:
            return None
        (a, before), (b, after) = past[0], past[1]
        return before + (after - before) * (then - a) / (b - a) - ln_T

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain numbers, for a checkpoint; the arguments are not part of it."""
        return {
            "lscore_patience": 1,
            "best_ln_L": self.best_ln_L,
            "ln_f_at_best": self._ln_f_at_best,
            "spent_at_best": self._spent_at_best,
            "since_best": self._since_best,
            "recent": list(self._recent),
            "history": [list(p) for p in self._history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned.

        Raises:
            ValueError: if ``state`` is not such a dictionary.
        """
        if state.get("lscore_patience") != 1:
            raise ValueError(
                f"expected the state of a Patience (lscore_patience: 1), got keys {sorted(state)}. "
                "Was it saved by a newer version?"
            )
        self.best_ln_L = float(state["best_ln_L"])
        at_best = state["ln_f_at_best"]
        self._ln_f_at_best = None if at_best is None else float(at_best)
        spent = state.get("spent_at_best")
        self._spent_at_best = None if spent is None else float(spent)
        self._since_best = int(state["since_best"])
        self._recent = [float(x) for x in state["recent"]]
        self._history = [[float(x) for x in p] for p in state["history"]]


def _ln_ratio(now: float, before: float | None) -> float:
    """Return ln(now / before), infinity if nothing was spent before."""
    if now == before or not now or before is None:
        return 0.0
    return math.log(now / before) if before else math.inf
