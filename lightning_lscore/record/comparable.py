"""Which validations compare, and how those that do not are made to.

Two values of L compare only under one formula and one evaluation set. Records keep what was
measured, so a run can always be scored again under another formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..equation.formula import Formula
from ..equation.level import first_reached, with_level
from .record import Record


def why_incomparable(a: Record, b: Record) -> list[str]:
    """Why the L of two validations do not compare, in words; empty where they do."""
    nominal = all(r.formula.get("T") == "nominal_perplexity" for r in (a, b))
    reasons = why_other_set(a, b, nominal=nominal)
    alike = charge_alike(a.formula, b.formula)
    return reasons if alike else [*reasons, "scored under another formula"]


def charge_alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two formulas of records give every run the same L, wherever they come from."""
    if a is b:  # as of validations under one line of context
        return True
    names = (a.keys() | b.keys()) - {"origin"}
    return all(name in a and name in b and a[name] == b[name] for name in names)


def why_other_set(a: Record, b: Record, *, nominal: bool) -> list[str]:
    """Why the perplexities of two validations do not compare, in words; empty where they do.

    Args:
        nominal: whether they are those of nominal tokens, which ask for the same text; the
            perplexity of a token asks for the same tokens.
    """
    if a.evaluation is not None and a.evaluation is b.evaluation and a.run == b.run:
        return []
    what, key = ("text", "bytes") if nominal else ("tokens", "fingerprints")
    sets = [getattr(r.evaluation, key, None) for r in (a, b)]
    if sets[0] != sets[1]:
        return [f"evaluated on other held-out {what}"]
    if not sets[0] and a.run != b.run:
        return [f"nothing says that it was evaluated on the same held-out {what}"]
    return []


def comparable_with_last(records: Sequence[Record]) -> list[Record]:
    """The validations whose L compares with that of the last one, which is among them."""
    return [r for r in records if r is records[-1] or not why_incomparable(r, records[-1])]


def best_record(records: Sequence[Record]) -> Record | None:
    """The validation with the lowest L of those that compare with the last; None without one."""
    scored = [r for r in comparable_with_last(records) if r.L is not None and not math.isnan(r.L)]
    return min(scored, key=lambda r: r.score.L, default=None)  # type: ignore[return-value, arg-type]


def rescored(records: Sequence[Record], formula: Formula) -> list[Record]:
    """The validations of one run under a formula; what it charges for must be recorded.

    Raises:
        ValueError: if the formula has a factor that is a function which fails.
    """
    charged = formula.to_dict()
    if all(charge_alike(record.formula, charged) for record in records):
        return list(records)
    again, before, reached = [], {}, {}  # type: ignore[var-annotated]
    for record in records:
        m = record.measurements
        if formula.level is not None:
            ln_T = formula.ln_T(m)
            now = {**m.spending(), "ln_T": math.nan if ln_T is None else ln_T}
            if math.isfinite(now["ln_T"]):
                reached = reached or first_reached(before, now, math.log(formula.level))
                before = now
            how = f"measured: perplexity {formula.level:g} reached, from the record"
            m = with_level(m, formula.level, reached, how)
        m = replace(m, elasticity_needed=formula.elasticity_needed(m))
        score = formula.score(m)
        again.append(replace(record, measurements=m, score=score, formula=charged))
    return again
