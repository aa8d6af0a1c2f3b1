"""When CostEarlyStopping would have stopped a recorded run, and what that would have changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..curve.judgement import judge
from ..curve.patience import Patience
from ..equation.formula import Formula
from ..equation.safe_numbers import exp, percent, readable
from ..record.comparable import comparable_with_last
from ..record.record import Record


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The first validation of a run at which the rule would have stopped it."""

    at: Record
    cause: str
    """Why, in a few words."""
    saved: float
    """Share of the run's spending that came later, in the measure of H, else of D."""
    perplexity: float
    """The lowest by then."""
    best_perplexity: float
    """The lowest of the whole run."""

    def __str__(self) -> str:
        stop = f"would have stopped at step {self.at.step:,} ({self.cause})"
        if not self.saved > 0:
            return f"{stop}, at the end of what is recorded"
        higher = self.perplexity / self.best_perplexity - 1
        kept = "the best perplexity kept"
        if higher > 0:
            kept = (
                f"the best perplexity {readable(self.perplexity)} instead of "
                f"{readable(self.best_perplexity)}, {percent(higher)} higher"
            )
        return f"{stop}: {percent(self.saved)} of the spending saved, {kept}"


def replay(records: Sequence[Record], patience: Patience) -> Replay | None:
    """Tell a rule of one validation after the other; None if it would not have stopped the run.

    Args:
        records: of one run. Those whose L does not compare with the last one's are left out.
        patience: a new one, as :class:`~lightning_lscore.CostEarlyStopping` makes it.
    """
    records = comparable_with_last(records)
    formula = Formula.from_dict(records[-1].formula)
    for i, record in enumerate(records):
        verdict = judge(
            patience,
            formula,
            record.measurements,
            batch=record.batch,
            planned=record.planned,
            learning_rate=record.learning_rate,
        )
        if verdict is not None and verdict.stop:
            return Replay(
                at=record,
                cause=verdict.cause,
                saved=_share_after(formula, record, records[-1]),
                perplexity=_lowest(formula, records[: i + 1]),
                best_perplexity=_lowest(formula, records),
            )
    return None


def hindsight(records: Sequence[Record], patience: Patience) -> str:
    """Say what :func:`replay` found."""
    found = replay(records, patience)
    return f"CostEarlyStopping {found or 'would not have stopped this run'}."


def _share_after(formula: Formula, record: Record, last: Record) -> float:
    measure = formula.spending_measure(last.measurements)
    spent, total = record.measurements.get(measure), last.measurements.get(measure)
    if spent is None or not total:
        spent, total = record.batch, last.batch
    return max(0.0, 1 - spent / total) if total else 0.0


def _lowest(formula: Formula, records: Sequence[Record]) -> float:
    found = [formula.ln_T(record.measurements) for record in records]
    return exp(min((y for y in found if y is not None and not math.isnan(y)), default=math.inf))
