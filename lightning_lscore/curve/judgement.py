"""One validation before the rule: the same whether the run is under way or read from its record."""

from __future__ import annotations

from ..equation.formula import Formula
from ..equation.learning_rate import LearningRate
from ..equation.measurements import Measurements
from .patience import Patience, Verdict


def judge(
    patience: Patience,
    formula: Formula,
    measured: Measurements,
    *,
    batch: int,
    planned: float | None,
    learning_rate: LearningRate,
) -> Verdict | None:
    """Tell ``patience`` of a validation; call it once for each.

    Args:
        patience: the rule by which the run is given up.
        formula: the one in force.
        measured: at the validation.
        batch: micro-batches of one process so far.
        planned: those of the whole run; None without a finite plan.
        learning_rate: at the validation.

    Returns:
        The verdict; None where there is no L.
    """
    ln_T, ln_f = formula.ln_T(measured), formula.ln_price(measured)
    if ln_T is None or ln_f is None:
        return None
    spent: float = batch
    at_end = formula.ln_price(measured, planned / spent) if planned and spent else None
    if patience.ratio is not None:
        spent = measured.get(formula.spending_measure(measured)) or spent
    return patience.update(
        ln_T=ln_T,
        ln_f=ln_f,
        spent=spent,
        planned=planned,
        ln_f_at_end=at_end,
        learning_rate=learning_rate,
    )
