"""How far a run is set to go, as known now; a later plan may differ from the first."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..equation.learning_rate import LearningRate
from ..model.epoch_shape import EpochShape
from .spending import Spending

WRONG = 0.1
"""A plan that is off by more is said to be wrong."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rest of a run: in tokens, or in batches where the tokens of a batch are not known yet."""

    tokens: float | None = None
    """Training tokens of the whole run over all processes, as the user gave them."""
    to_come: float | None = None
    """Micro-batches that each process is still going to train on; None: not known."""
    how: str = "unknown"
    """How they are known, in words."""
    learning_rate: LearningRate = field(default_factory=LearningRate)
    """As it is now, and where it stands in its decay."""

    def end(self, batches: int) -> float | None:
        """Return the micro-batches of each process at the end, after so many; None: not known."""
        return None if self.to_come is None else batches + self.to_come

    def batches_in_all(self, spending: Spending) -> float | None:
        """Return the micro-batches of each process, if batches hold what they held so far."""
        if self.tokens is not None and spending.tokens:
            return self.tokens / spending.tokens * spending.batches
        return self.end(spending.batches)

    def tokens_in_all(self, spending: Spending, shape: EpochShape | None) -> float | None:
        """Return the tokens that the loop will have trained on; None: not known.

        Args:
            spending: over all processes, until now.
            shape: of its epochs; None: batches hold what they held so far.
        """
        if self.to_come is None or spending.uncounted_batches or not spending.batches:
            return None
        in_all = spending.batches + self.to_come
        return spending.tokens * growth(spending.batches, in_all, shape)

    def in_words(self, batches: float | None, is_read: bool) -> str:
        """Return what is taken for the run's end, for its first formula, and what overrides it.

        Args:
            batches: micro-batches of each process in the whole run; None: not known.
            is_read: whether the data was read in advance.
        """
        if self.tokens is not None:
            return f"{self.tokens:,.0f} tokens, as planned_tokens says"
        if batches is None:
            return f"{self.how}; planned_tokens= tells"
        each = "data read in advance" if is_read else "batches until the first validation"
        return (
            f"{batches:,.0f} micro-batches of each process, {self.how}; their tokens by those of "
            f"the {each}; planned_tokens= overrides"
        )

    def of_a_later_fit(self, planned: float | None) -> str:
        """Return the same where there is a formula already.

        Args:
            planned: tokens that D and H are charged against; None: the formula was given.
        """
        rest = "" if self.to_come is None else f"{self.to_come:,.0f} micro-batches to come, "
        if planned is None:
            return f"{rest}{self.how}; for forecasts alone, the formula was given"
        return f"{planned:,.0f} tokens, of the run's first fit; this one: {rest}{self.how}"


def growth(batches: float, later: float, shape: EpochShape | None) -> float:
    """Return how many times the tokens of a run's first batches those of more of them are."""
    return later / batches if shape is None else shape.until(later) / shape.until(batches)


def proves_wrong(planned: float, now: float) -> str | None:
    """Return the warning about a plan that is off by more than ``WRONG``; None if it holds.

    Args:
        planned: tokens that the run was expected to end with.
        now: the same, as known now.
    """
    if abs(now / planned - 1) <= WRONG:
        return None
    return (
        f"expected this run to end with {planned:,.0f} training tokens, and now with {now:,.0f}. "
        "The reference of D and H in its formula stays as it was. Say planned_tokens= where you "
        "know better, or give a formula."
    )
