"""Runs without a common formula: what each perplexity cost, and which runs none beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..equation.formula import Formula
from ..equation.measures import MEASURES
from ..record.comparable import best_record, rescored
from ..record.reaching import COSTS, Lowest, lowest, spending_to
from ..record.record import Record
from .cells import SPENDING_NAMES, Table, count, duration, number

MOST_FORMULAS = 16
"""Under so many of the runs' formulas, evenly chosen, ranks are computed."""

CHOOSE = (
    "To rank them by L choose one formula for all: a budget of your own, or a run's spending as\n"
    'the reference, Formula.from_record("RUN").save("study.json"). Then say --formula study.json.'
)


def without_a_formula(runs: Mapping[str, Sequence[Record]], T: str = "perplexity") -> Table:
    """Return each run's lowest perplexity and what was spent on it, marked where no run beats it.

    Args:
        runs: the validations of each by its name, at least one of each.
        T: in which they compare.
    """
    formulas = {f.id: f for records in runs.values() if (f := _formula(records))}
    ends = {name: lowest(records, T) for name, records in runs.items()}
    costs = [c for c in COSTS if any(e and e.record.measurements.get(c) for e in ends.values())]
    places = _places(runs, list(formulas.values()))
    titles = (*(SPENDING_NAMES[c] for c in costs), "rank by L")
    rows: list[tuple[str, ...]] = []
    for name, end in ends.items():
        used = _formula(runs[name])
        row = [name, used.id if used else "a function"]
        row += ["-", "-"] if end is None else [_T(end, T), str(end.record.step)]
        for cost in costs:
            row.append(_amount(end, cost) + ("*" if _unbeaten(name, cost, runs, ends, T) else " "))
        rows.append((*row, places.get(name, "-")))
    asked = f"{len(formulas)} formulas" if len(formulas) != 1 else "one formula and functions"
    above = [
        f"These runs were scored under {asked}, so their values of L do not compare.",
        *(_of_origin(f, runs) for f in formulas.values() if len(formulas) <= 8),
    ]
    below = [
        "* no other run reached this perplexity with less: the Pareto front.",
        "rank by L: the first and last place of the run under the formulas of these runs.",
    ]
    missing = [c for c in COSTS if c not in costs]
    first = next(iter(runs.values()))[-1].measurements
    below += [f"{c}: {first.why_missing(c)} (all runs)" for c in missing]
    head = ("run", "formula", T.replace("_", " "), "step", *titles)
    return Table(above=above, head=head, rows=rows, below=[*below, "", CHOOSE])


def _formula(records: Sequence[Record]) -> Formula | None:
    try:
        return Formula.from_dict(records[-1].formula)
    except ValueError:  # it holds a function
        return None


def _of_origin(formula: Formula, runs: Mapping[str, Sequence[Record]]) -> str:
    names = [n for n, r in runs.items() if (f := _formula(r)) and f.id == formula.id]
    return f"  {formula.id} ({formula.origin}): {', '.join(names)}"


def _T(end: Lowest, T: str) -> str:
    return number(end.record.measurements.get(T))


def _amount(end: Lowest | None, cost: str) -> str:
    value = None if end is None else end.record.measurements.get(cost)
    if MEASURES[cost].unit == "h":
        return duration(value)
    return count(value) if cost == "tokens" else number(value)


def _unbeaten(
    name: str,
    cost: str,
    runs: Mapping[str, Sequence[Record]],
    ends: Mapping[str, Lowest | None],
    T: str,
) -> bool:
    """Whether no other run reached the lowest perplexity of this one with less."""
    end = ends[name]
    spent = None if end is None else end.record.measurements.get(cost)
    if end is None or spent is None:
        return False
    for other, records in runs.items():
        if other == name:
            continue
        theirs = (spending_to(records, end.ln_T, T) or {}).get(cost)
        if theirs is not None and theirs < spent:
            return False
    return True


def _places(runs: Mapping[str, Sequence[Record]], formulas: Sequence[Formula]) -> dict[str, str]:
    """Return the first and the last place of each run over the formulas, as text."""
    step = max(1, -(-len(formulas) // MOST_FORMULAS))
    places: dict[str, list[int]] = {}
    for formula in formulas[::step]:
        best = {name: best_record(rescored(records, formula)) for name, records in runs.items()}
        scored = {name: r.L for name, r in best.items() if r is not None and r.L is not None}
        for name, L in scored.items():
            place = 1 + sum(other < L for other in scored.values())
            places.setdefault(name, []).append(place)
    return {
        name: f"{min(p)}" if min(p) == max(p) else f"{min(p)} to {max(p)}"
        for name, p in places.items()
    }
