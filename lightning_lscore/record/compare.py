"""Which validations compare, and how those that do not are made to.

Two values of L compare only under one formula and one evaluation set. Records keep what was
measured, so a run can always be scored again under another formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..equation.formula import Formula
from ..equation.level import first_reached, with_level
from .records import Record


def why_incomparable(a: Record, b: Record) -> list[str]:
    """Why the L of two validations do not compare, in words; empty where they do."""
    formulas = [{k: v for k, v in r.formula.items() if k != "origin"} for r in (a, b)]
    nominal = all(f.get("T") == "nominal_perplexity" for f in formulas)
    reasons = why_other_set(a, b, nominal=nominal)
    return reasons if formulas[0] == formulas[1] else [*reasons, "scored under another formula"]


def why_other_set(a: Record, b: Record, *, nominal: bool) -> list[str]:
    """Why the perplexities of two validations do not compare, in words; empty where they do.

    Args:
        nominal: whether they are those of nominal tokens, which ask for the same text; the
            perplexity of a token asks for the same tokens.
    """
    what, key = ("text", "bytes") if nominal else ("tokens", "fingerprints")
    sets = [r.evaluation.get(key) for r in (a, b)]
    if sets[0] != sets[1]:
        return [f"evaluated on other held-out {what}"]
    if not sets[0] and a.run != b.run:
        return [f"nothing says that it was evaluated on the same held-out {what}"]
    return []


def comparable_with_last(records: Sequence[Record]) -> list[Record]:
    """The validations whose L compares with that of the last one, which is among them."""
    return [r for r in records if r is records[-1] or not why_incomparable(r, records[-1])]


def rescored(records: Sequence[Record], formula: Formula) -> list[Record]:
    """The validations of one run under another formula; what it charges for must be recorded.

    Raises:
        ValueError: if the formula has a factor that is a function which fails.
    """
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
        score = formula.score(m)
        again.append(replace(record, measurements=m, score=score, formula=formula.to_dict()))
    return again


def comparison(runs: Mapping[str, Sequence[Record]], formula: Formula | None = None) -> str:
    """Best and last L of runs side by side, all under one formula, which is named.

    Args:
        runs: the validations of each by its name, at least one of each.
        formula: under which all are scored again. Default: the first run's.

    Raises:
        ValueError: if a run was evaluated on another set than the first.
    """
    from ..show.tables import best_record, columns, count, duration, number

    (first_name, first), *_ = runs.items()
    formula = formula or Formula.from_dict(first[-1].formula)
    rows = [("run", "tokens", "device time", "last L", "perplexity", "best L", "at step", "")]
    best: dict[str, Record | None] = {}
    again = {name: rescored(records, formula) for name, records in runs.items()}
    for name, records in again.items():
        if why := why_incomparable(records[-1], again[first_name][-1]):
            raise ValueError(
                f"expected runs on one evaluation set, got {name}: {why[0]} than {first_name}. "
                "Evaluate both on the same set, or across tokenizers score them under a formula "
                'with T="nominal_perplexity".'
            )
        best[name] = best_record(records)
    Ls = [r.L for r in best.values() if r is not None and r.L is not None]
    for name, records in again.items():
        last, top = records[-1], best[name]
        m = last.measurements
        spent = (count(m.tokens), duration(m.device_hours))
        L, step = (None, "-") if top is None else (top.L, str(top.step))
        mark = "<" if L is not None and L == min(Ls) else ""
        scores = (number(last.L), number(last.score.perplexity), number(L), step, mark)
        rows.append((name, *spent, *scores))
    return "\n".join([f"Scored under one formula: {formula.origin}.", "", *columns(rows, left=1)])
