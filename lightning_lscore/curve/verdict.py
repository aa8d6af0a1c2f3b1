"""What a validation did to the patience, as numbers and as a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..equation.safe_numbers import expm1, percent, readable


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a validation did to the patience. Prices and patience in nats (0.01 = 1 % of L)."""

    improved: bool
    """Whether this validation has the lowest L so far."""
    paid: float
    """By how much the price ln f has risen since the best L."""
    waited: float
    """The same as ``paid``, or since a decay was last ahead; with a ratio, of ln spending."""
    patience: float
    """How much of ``waited`` is accepted at this noise."""
    outlook: float | None
    """By how much the rest of the plan may lower L below its best, at most; None while unknown."""
    validations: int
    """Validations in a row without improvement."""
    noise: float
    """Standard deviation of one validation's ln T about the curve; 0 before four validations."""
    rise: float
    """By how much ln T is above its lowest so far."""
    impatient: bool
    """Whether the patience is over."""
    hopeless: bool
    """Whether the rest of the plan cannot pay."""
    turned: str
    """How the held-out loss has turned, in words; empty where it has not."""
    held_back: str
    """Why neither patience nor outlook may end the run now, in words; empty where they may."""
    of_spending: bool = False
    """Whether spending was waited in, not the price."""
    reason: str = ""
    """The verdict as a sentence."""

    @property
    def stop(self) -> bool:
        """Whether the run is to stop."""
        gives_up = (self.impatient or self.hopeless) and not self.held_back
        return bool(self.turned) or gives_up

    @property
    def cause(self) -> str:
        """Why the run is to stop, in a few words; empty where it goes on."""
        if not self.stop:
            return ""
        if self.turned:
            return f"held-out loss {self.turned}"
        if self.hopeless:
            return "the rest of the plan cannot pay"
        what = "spending" if self.of_spending else "price"
        return f"{what} up {_percent(self.waited)} without a better L"


def reason_of(verdict: Verdict) -> str:
    """Return the verdict as a sentence."""
    if verdict.improved and not verdict.stop:
        return "The lowest L so far."
    count = verdict.validations
    text = f"No better L in {count} validation{'s' * (count != 1)}"
    if verdict.turned:
        return f"{text}, and the held-out loss {_turn(verdict)}: more spending does not pay."
    if verdict.hopeless and verdict.outlook is not None:
        gain = max(0.0, 100 * -expm1(-verdict.outlook))
        text += f", and the rest of the plan can lower it by {gain:.2f} % at most"
    if verdict.impatient or not verdict.hopeless:
        text += (
            f", while the {'spending' if verdict.of_spending else 'price'} rose by "
            f"{_percent(verdict.waited)} of {_percent(verdict.patience)} accepted"
        )
    if verdict.held_back:
        return f"{text}; {verdict.held_back}, so the run goes on."
    if not (verdict.impatient or verdict.hopeless):
        return f"{text}."
    return f"{text}: more spending does not pay."


def _turn(verdict: Verdict) -> str:
    if not math.isfinite(verdict.rise):
        return "is no finite number"
    above = f"is {readable(verdict.rise)} nats above its lowest"
    if verdict.turned == "diverging":
        return f"{above} and rises further"
    return f"{above} at the third validation in a row, beyond its noise of {verdict.noise:.4f}"


def _percent(nats: float) -> str:
    return percent(expm1(min(nats, 700.0)), decimals=2)
