"""What a run had spent when it first reached a perplexity, and the lowest that it reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..equation.formula import Formula
from ..equation.level import first_reached
from .comparable import why_other_set
from .record import Record

COSTS = ("tokens", "device_hours", "energy_kwh", "cost")
"""The measures of spending in which runs are compared without a formula."""


class Lowest(NamedTuple):
    """The lowest perplexity that a run reached."""

    record: Record
    ln_T: float


def evaluated_alike(records: Sequence[Record], T: str = "perplexity") -> list[tuple[Record, float]]:
    """Return the validations on the set of the last one that have a finite T, each with ln T."""
    last, nominal = records[-1], T == "nominal_perplexity"
    formula, found = Formula(T=T), []
    for record in records:
        ln_T = formula.ln_T(record.measurements)
        alike = record is last or not why_other_set(record, last, nominal=nominal)
        if alike and ln_T is not None and math.isfinite(ln_T):
            found.append((record, ln_T))
    return found


def lowest(records: Sequence[Record], T: str = "perplexity") -> Lowest | None:
    """Return the first validation with the lowest T of a run; None without a finite one."""
    found = evaluated_alike(records, T)
    return Lowest(*min(found, key=lambda pair: pair[1])) if found else None


def spending_to(
    records: Sequence[Record], ln_T: float, T: str = "perplexity"
) -> dict[str, float] | None:
    """Return what a run had spent when its ln T first fell to a value, by measure.

    Between two validations ln T is taken as linear in the spending.

    Returns:
        None if it never did.
    """
    before: dict[str, float] = {}
    for record, value in evaluated_alike(records, T):
        now = {**record.measurements.spending(), "ln_T": value}
        if reached := first_reached(before, now, ln_T):
            return reached
        before = now
    return None
