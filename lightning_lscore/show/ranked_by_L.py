"""Runs ranked by L under one formula, what each L is made of, and which differences are noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from ..equation.factor import Factor
from ..equation.formula import Formula
from ..record.comparable import best_record, rescored
from ..record.record import Record
from .cells import SPENDING_NAMES, Table, count, duration, number
from .noise_of_L import difference_of, scatter_of_each

MONEY = ("energy_kwh", "cost")


def ranked_by_L(
    runs: Mapping[str, Sequence[Record]], formula: Formula, repeats: Sequence[Collection[str]] = ()
) -> Table:
    """Return each run where its L was lowest, the lowest first.

    Args:
        runs: the validations of each by its name, at least one of each.
        formula: under which all are scored.
        repeats: see ``comparison``.
    """
    again = {name: rescored(records, formula) for name, records in runs.items()}
    best = {name: best_record(records) for name, records in again.items()}
    order = sorted(again, key=lambda n: math.inf if (r := best[n]) is None else r.L or math.inf)
    scatter = scatter_of_each(again, formula.T, repeats)
    known = [name for name in MONEY if any(_value(r, name) is not None for r in best.values())]
    head = (
        "run",
        "step",
        "tokens",
        "device time",
        *(SPENDING_NAMES[n] for n in known),
        "perplexity",
        "f_D",
        "f_A",
        "f_H",
        "L",
    )
    rows: list[tuple[str, ...]] = []
    winner = best[order[0]]
    tied = []
    for name in order:
        record, last = best[name], again[name][-1]
        shown = last if record is None else record
        m, s = shown.measurements, shown.score
        mark = "<" if record is not None and record is winner else ""
        if record is not None and winner is not None and record is not winner:
            gap = difference_of(formula, order[0], winner, name, record, scatter)
            if gap is not None and gap.is_tie:
                mark = "="
                tied.append(f"{name} ({gap.why})")
        costs = [number(_value(shown, n)) for n in known]
        factors = [number(f) for f in (s.f_D, s.f_A, s.f_H)]
        L = number(None if record is None else record.L)
        row = (str(shown.step), count(m.tokens), duration(m.device_hours), *costs)
        rows.append((name, *row, number(s.perplexity), *factors, L, mark, number(last.L)))
    below = [f"= a tie with {order[0]}: {'; '.join(tied)}."] if tied else []
    return Table(
        above=[
            f"Ranked by L under formula {formula.id} ({formula.origin}), each run at its best L."
        ],
        head=(*head, "", "last L"),
        rows=rows,
        below=[*below, *_reasons(again, best, formula)],
    )


def _value(record: Record | None, measure: str) -> float | None:
    return None if record is None else record.measurements.get(measure)


def _reasons(
    runs: Mapping[str, Sequence[Record]], best: Mapping[str, Record | None], formula: Formula
) -> list[str]:
    """Why something is not shown: an L, an energy or a price."""
    found: dict[str, list[str]] = {}
    for name, records in runs.items():
        if best[name] is None:
            why = "; ".join(records[-1].score.missing) or "every L is NaN"
            found.setdefault(f"no L: {why}", []).append(name)
        charged = [f.measure for f in (formula.D, formula.A, formula.H) if isinstance(f, Factor)]
        m = (best[name] or records[-1]).measurements
        for measure in MONEY:
            if m.get(measure) is None and measure not in charged:
                found.setdefault(f"{measure}: {m.why_missing(measure)}", []).append(name)
    return [
        f"{why} ({'all runs' if len(names) == len(runs) else ', '.join(names)})"
        for why, names in found.items()
    ]
