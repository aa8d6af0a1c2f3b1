"""What a validation did to the patience, as numbers and as a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..equation.safe_numbers import percent


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a validation did to the patience. Prices and patience in nats (0.01 = 1 % of L)."""

    stop: bool
    improved: bool
    """Whether this validation has the lowest L so far."""
    paid: float
    """By how much the price ln f has risen since the best L."""
    waited: float
    """The same as ``paid``; with a ratio, by how much ln spending has risen."""
    patience: float
    """How much of ``waited`` is accepted at this noise."""
    outlook: float | None
    """By how much the rest of the plan may lower L below its best, at most; None while unknown."""
    validations: int
    """Validations in a row without improvement."""
    noise: float
    """Standard deviation of ln T from one validation to the next; 0 before three validations."""
    reason: str
    """The verdict as a sentence."""


def reason_of(verdict: Verdict, impatient: bool, hopeless: bool, armed: bool, what: str) -> str:
    """Return the verdict as a sentence.

    Args:
        verdict: everything but the sentence.
        impatient: whether the patience is over.
        hopeless: whether the rest of the plan cannot pay.
        armed: whether the run may stop now.
        what: what was waited in, "price" or "spending".
    """
    if verdict.improved:
        return "The lowest L so far."
    count = verdict.validations
    text = f"No better L in {count} validation{'s' * (count != 1)}"
    if hopeless and verdict.outlook is not None:
        gain = max(0.0, 100 * -math.expm1(-verdict.outlook))
        text += f", and the rest of the plan can lower it by {gain:.2f} % at most"
    if impatient or not hopeless:
        text += (
            f", while the {what} rose by {_percent(verdict.waited)} of "
            f"{_percent(verdict.patience)} accepted"
        )
    if not (impatient or hopeless):
        return f"{text}."
    if not armed:
        return f"{text}; the learning rate is still changing, so the run goes on."
    return f"{text}: more spending does not pay."


def _percent(nats: float) -> str:
    return percent(math.expm1(min(nats, 700.0)), decimals=2)
