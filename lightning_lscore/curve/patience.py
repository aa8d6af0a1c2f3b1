"""When to stop: a rule that counts money instead of validations.

:class:`Patience` is pure and holds plain numbers only. At each validation it takes the two parts of
ln L, perplexity and price (``Formula.ln_price``), how much of the plan is spent, and the learning
rate, and returns a :class:`Verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..equation.learning_rate import LearningRate
from .newest import REMEMBERED, falls_faster, scatter
from .rates import Rates
from .rise import Rise
from .verdict import Verdict, reason_of

__all__ = ["Patience", "Verdict"]

HISTORY = 512
"""How many of a plan's validations are kept at most for the outlook; between two of them it
interpolates."""


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
        s    = median |third difference of ln T| / (0.6745 · √20)   over the last n <= 20

    and as soon as the held-out loss itself has turned ::

        ln T > lowest ln T + tolerance + certainty · s    at three validations in a row
        ln T > lowest ln T + 10 %, and rising             at two   (it diverges; or it is no number)

    *Patience.* The left side is what was paid since the best, in the currency of L: if T stands
    still, L is now that much worse. It is a difference of prices, not a ratio of spendings. A run
    that starts from a trained model, whose spending at the best L may be 0, is thus no special
    case, and the rule means the same for every weight, measure and unit. If time is free (all
    weights 0) the price never rises.

    *Outlook.* Losses fall ever slower, so the rest of the plan buys no more than the last stretch
    of the same length did. That, less what the rest costs and what L has already lost, bounds what
    can still be won. The outlook is unknown until half of the plan is spent, or without a plan.
    While the loss falls faster than before, beyond noise, its past is no guide, and neither the
    patience nor the outlook ends the run.

    *Tolerance* is the price that you are willing to pay, or the gain that you are willing to leave:
    half of the 1 % of L within which a run should end. *Luck* waits out noise: the best L is a
    lucky reading below the curve, and one that fails to beat it may lie as far above. s is the
    scatter of the run's own validations; 1 + 2/n allows for a median of few. Before the fourth
    validation there is no s, and luck is one tolerance.

    *The learning rate.* Nearly every fine-tuning decays its rate from the first step to the last,
    so the rule holds while it decays. A plateau before a decay looks like the end, however: while
    one is known to be ahead, price and outlook do not end the run, and only a loss that has turned
    does; waiting begins with the decay. Neither ends it where the rate is higher than it had fallen
    to at the best L, as after a warm restart, and a loss that rises there has not turned. Where
    nothing foretells the rate, a stop on a plateau means that it is time to decay.

    *Ratio.* A plain rule instead: stop once ``ratio`` more has been spent than at the best L, or
    when the loss diverges. On public training runs this gives up too early if the spending at the
    best L was small, as it is when a run starts from a trained model.

    Args:
        tolerance: in nats, > 0. 0.005: 0.5 % of L.
        certainty: how many standard deviations of noise to wait out, >= 0.
        validations: least number of validations without improvement, >= 1. With 2, one odd
            validation decides nothing.
        ratio: > 0; 0.25: stop when 25 % more has been spent since the best L, whatever it cost.
            ``tolerance`` and ``certainty`` then have no effect. None: the rule above.
        while_decaying: whether price, outlook and ratio may end the run even before a decay of the
            learning rate that is known to be ahead.

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
        certainty: float = 3.0,
        validations: int = 2,
        ratio: float | None = None,
        while_decaying: bool = False,
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
        self.while_decaying = while_decaying
        self.reset()

    def reset(self) -> None:
        """Forget every validation, for another run or another formula."""
        self.best_ln_L = math.inf
        """Lowest ln L so far, infinite before the first finite one."""
        self._ln_f_at_best: float | None = None
        self._since_best = 0
        self._start: list[Any] = []  # of waiting: ln f and spent there, and validations since
        self._recent: list[float] = []  # ln T, newest last
        self._history: list[list[float]] = []  # [spent, ln T], as far back as "then" can reach
        self._loss = Rise()
        self._rates = Rates()

    def update(
        self,
        *,
        ln_T: float,
        ln_f: float,
        spent: float | None = None,
        planned: float | None = None,
        ln_f_at_end: float | None = None,
        learning_rate: LearningRate | None = None,
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
            learning_rate: at this validation, and where it stands in its decay. Default: unknown.

        Raises:
            ValueError: if ``ln_f`` is NaN or +infinity (-infinity is the price of having spent
                nothing under a plain power, c = 0), or ``spent`` is missing for a ``ratio``.
        """
        if self.ratio is not None and spent is None:
            raise ValueError("spent: expected a number to take the ratio of, got None.")
        if math.isnan(ln_f) or ln_f == math.inf:
            raise ValueError(f"ln_f: expected a number, got {ln_f!r}; check the formula's factors.")
        rate = learning_rate or LearningRate()
        improved = self._keep_best(ln_T + ln_f, ln_f)
        noise, luck = self._noise(ln_T)
        self._watch_the_loss(ln_T, noise, rate, improved)
        ahead = self._ahead(rate)
        plateau = rate.decay == "ahead" and bool(ahead)
        self._count_waiting(ln_f, spent, anew=improved or plateau)
        if plateau:
            self._history = []  # what it bought bounds nothing

        start_ln_f, start_spent, waits = self._start
        waited, patience, outlook = _rise(ln_f, start_ln_f), self.tolerance + luck, None
        if self.ratio is not None:
            waited, patience = _ln_ratio(spent, start_spent), math.log1p(self.ratio)
        elif spent is not None and planned is not None and math.isfinite(ln_T):
            bought = self._bought(float(spent), float(planned), float(ln_T))
            if bought is not None and ln_f_at_end is not None:
                lost = ln_T + ln_f - self.best_ln_L
                outlook = bought - (ln_f_at_end - ln_f) - lost + luck
                outlook = None if math.isnan(outlook) else outlook

        enough = waits >= self.validations
        verdict = Verdict(
            improved=improved,
            paid=_rise(ln_f, self._ln_f_at_best),
            waited=waited,
            patience=patience,
            outlook=outlook,
            validations=self._since_best,
            noise=noise,
            rise=ln_T - self._loss.lowest,
            impatient=enough and waited >= patience,
            hopeless=enough and outlook is not None and outlook < self.tolerance,
            turned=self._turned(),
            held_back=ahead or self._held_back(noise),
            of_spending=self.ratio is not None,
        )
        return replace(verdict, reason=reason_of(verdict))

    def _noise(self, ln_T: float) -> tuple[float, float]:
        """Take in a loss; return one validation's standard deviation, and the luck to allow for."""
        if math.isfinite(ln_T):
            self._recent = [*self._recent[1 - REMEMBERED :], float(ln_T)]
        noise, n = scatter(self._recent)
        if not self.certainty:
            return noise, 0.0
        return noise, self.certainty * noise * (1 + 2 / n) if n else self.tolerance

    def _watch_the_loss(self, ln_T: float, noise: float, rate: LearningRate, best: bool) -> None:
        expected = self._rates.rose_since_lowest(rate)
        margin = self.tolerance + self.certainty * noise
        lowest = self._loss.update(ln_T, margin, expected=expected)
        self._rates.take_in(rate, best=best, lowest=lowest)

    def _count_waiting(self, ln_f: float, spent: float | None, *, anew: bool) -> None:
        """Count a validation; anew from the best L, and from where a decay is no longer ahead."""
        if anew or not self._start:
            self._start = [float(ln_f), None if spent is None else float(spent), 0]
        if not anew:
            self._start[2] += 1

    def _turned(self) -> str:
        """How the held-out loss has turned, in words; empty where it has not."""
        if self._loss.diverges:
            return "diverging"
        return "rising beyond noise" if self._loss.is_beyond_noise and not self.ratio else ""

    def _ahead(self, rate: LearningRate) -> str:
        """What of the learning rate is still to come, in words; empty where nothing, or unknown."""
        if self.while_decaying:
            return ""
        if rate.decay == "ahead":
            return "a decay of the learning rate is still ahead"
        if self._rates.rose_since_best(rate) and rate.decay != "over":
            return "the learning rate is higher again than at the best L"
        return ""

    def _held_back(self, noise: float) -> str:
        """What makes the past no guide to the rest, in words; empty where it is one."""
        if self.ratio is None and falls_faster(self._recent, self._since_best, noise):
            return "the loss falls faster than before"
        return ""

    def _keep_best(self, ln_L: float, ln_f: float) -> bool:
        """Keep this validation as the best if it is; return whether it is."""
        improved = ln_L < self.best_ln_L
        if improved:
            self.best_ln_L = float(ln_L)
        self._since_best = 0 if improved else self._since_best + 1
        # Without a finite L so far, the price counts from the first validation.
        if improved or self._ln_f_at_best is None:
            self._ln_f_at_best = float(ln_f)
        return improved

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
            "since_best": self._since_best,
            "start": list(self._start),
            "recent": list(self._recent),
            "history": [list(p) for p in self._history],
            "loss": self._loss.state_dict(),
            "rates": self._rates.state_dict(),
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
        self._since_best = int(state["since_best"])
        # A checkpoint of an earlier version waits from its best L, and lacks the rest.
        earlier = [at_best, state.get("spent_at_best"), self._since_best]
        self._start = list(state.get("start", [] if at_best is None else earlier))
        self._recent = [float(x) for x in state["recent"]]
        self._history = [[float(x) for x in p] for p in state["history"]]
        self._loss, self._rates = Rise(), Rates()
        if "loss" in state:
            self._loss.load_state_dict(state["loss"])
            self._rates.load_state_dict(state["rates"])


def _rise(now: float, before: float | None) -> float:
    """Return now - before, 0 where they are equal or there is none before."""
    return 0.0 if before is None or now == before else now - before  # -inf - -inf is NaN


def _ln_ratio(now: float | None, before: float | None) -> float:
    """Return ln(now / before), infinity if nothing was spent before."""
    if now == before or not now or before is None:
        return 0.0
    return math.log(now / before) if before else math.inf
