"""How far a run is set to go, as known now; a later plan may differ from the first."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..equation.learning_rate import LearningRate
from .spending import Spending


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The end of a run: in tokens, or in batches where the tokens of a batch are not known yet."""

    tokens: float | None = None
    """Training tokens of the whole run, over all processes; None: given in batches."""
    batches: float | None = None
    """Micro-batches of each process; None: no finite plan."""
    learning_rate: LearningRate = field(default_factory=LearningRate)
    """As it is now, and where it stands in its decay."""

    def batches_in_all(self, spending: Spending) -> float | None:
        """Return the micro-batches of each process, if batches hold what they held so far."""
        if self.tokens is None or not spending.tokens:
            return self.batches
        return self.tokens / spending.tokens * spending.batches
