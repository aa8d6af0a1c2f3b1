"""Runs side by side, all under one formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..equation.formula import Formula
from ..record.comparable import best_record, rescored, why_incomparable
from ..record.record import Record
from .cells import columns, count, duration, number


def comparison(runs: Mapping[str, Sequence[Record]], formula: Formula | None = None) -> str:
    """Best and last L of runs side by side, all under one formula, which is named.

    Args:
        runs: the validations of each by its name, at least one of each.
        formula: under which all are scored again. Default: the first run's.

    Raises:
        ValueError: if a run was evaluated on another set than the first.
    """
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
