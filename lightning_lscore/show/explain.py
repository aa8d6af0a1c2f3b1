"""What moved L in a run: the part of T and of each factor between validations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..curve.patience import Patience
from ..equation.factor import TRAINING_TIME, Factor
from ..equation.formula import Formula
from ..equation.safe_numbers import exp, expm1
from ..record.comparable import best_record, comparable_with_last
from ..record.record import Record
from .cells import adding_up, amount, columns, percent_change
from .device_table import device_table
from .equation_in_words import exchange_rates
from .replay import hindsight
from .tables import expectation


def explain_run(
    records: Sequence[Record],
    start: int | None = None,
    end: int | None = None,
    patience: Patience | None = None,
) -> str:
    """What moved L in a run: the part of T and of each factor between validations.

    Args:
        records: of one run, under one formula; at least one.
        start: step of the validation to begin with. Default: first to best L, and best to last.
        end: step of the validation to end with. Default: the last one.
        patience: the rule that is replayed, new. Default: that of ``CostEarlyStopping()``.

    Raises:
        ValueError: if no validation is at such a step, or none has an L.
    """
    last = records[-1]
    left_out = len(records)
    records = comparable_with_last(records)
    left_out -= len(records)
    formula = Formula.from_dict(last.formula)
    best = best_record(records)
    if best is None:
        why = "; ".join(last.score.missing) or "every L is NaN"
        raise ValueError(f"expected a run with an L to explain, got none: {why}.")
    if start is None and end is None:
        stops = [records[0], best, last]
    else:
        stops = [
            records[0] if start is None else _at(records, start),
            last if end is None else _at(records, end),
        ]
    plural = "s" * (len(records) != 1)
    text = [f"Run {last.run}: {len(records)} validation{plural} up to step {last.step}."]
    if left_out:
        text.append(f"{left_out} more were scored otherwise and do not compare with them.")
    text += ["", exchange_rates(formula)]
    ways = [(a, b) for a, b in itertools.pairwise(stops) if a is not b]
    tables = [_between(formula, a, b, best) for a, b in ways] or [_at_one(formula, stops[0])]
    for table in tables:
        text += [table, ""]
    text += [hindsight(records, patience or Patience()), ""]
    text.append(idle_cost(formula, last))
    if said := expectation(last):
        text.append(f"{said[0].upper()}{said[1:]}{'' if said.endswith('.') else '.'}")
    if devices := device_table(last):
        text += ["", devices]
    return "\n".join([*text, ""])


def _between(formula: Formula, a: Record, b: Record, best: Record) -> str:
    parts = [formula.ln_parts(r.measurements) for r in (a, b)]
    changes = {x: _change(parts[0][x], parts[1][x]) for x in "TDAH"}
    percent = {x: percent_change(change) for x, change in changes.items()}
    known = [change for change in changes.values() if change is not None]
    if len(known) == len(changes):
        percent["L"] = percent_change(sum(known))
    ends = [f"step {r.step}{', the best L,' if r is best else ''}" for r in (a, b)]
    head = f"From {ends[0]} to {ends[1]} L was moved by"
    return _table(head, formula, (a, b), changes, ("change of ln L", ""), percent)


def _at_one(formula: Formula, record: Record) -> str:
    parts = formula.ln_parts(record.measurements)
    factors = {x: f"{exp(p):.4f}" for x, p in parts.items() if x != "T" and p is not None}
    head = f"At step {record.step} L is made of"
    return _table(head, formula, (record,), parts, ("part of ln L", "factor"), factors)


def _table(
    head: str,
    formula: Formula,
    records: Sequence[Record],
    parts: dict[str, float | None],
    titles: tuple[str, str],
    beside: Mapping[str, str],
) -> str:
    """A row for T, each factor and L: what it measures at each record, and its part of ln L."""
    shown = adding_up(parts)
    rows: list[tuple[str, ...]] = [("   ", "", *(f"step {r.step}" for r in records), *titles)]
    for x in "TDAH":
        factor = getattr(formula, x)
        name = factor if isinstance(factor, str) else "a constant"
        amounts = [_of_T(r, formula) if x == "T" else "" for r in records]
        if isinstance(factor, Factor):
            name = factor.measure
            amounts = [amount(factor.priced(r.measurements), factor) for r in records]
        elif callable(factor):
            name = "a function"
        rows.append((f"   {x}", name, *amounts, shown[x], beside.get(x, "")))
    amounts = [f"{r.L:.4f}" if r.L is not None else "-" for r in records]
    total = "-" if None in parts.values() else shown["L"]
    rows.append(("   L", "", *amounts, total, beside.get("L", "")))
    return "\n".join([f"{head} (the parts of ln L add up)", "", *columns(rows, left=2)])


def idle_cost(formula: Formula, record: Record) -> str:
    """What the time in which the devices stood idle costs in L, as a sentence."""
    H, m = formula.H, record.measurements
    busy = m.busy_fraction
    if not isinstance(H, Factor) or H.measure not in TRAINING_TIME:
        return "Idle time: H does not charge for training time, so that idle devices cost no L."
    if busy is None:
        return f"Idle time: not known, {m.why_missing('busy_fraction')}."
    with_idle, without = H.ln(m), replace(H, idle_price=0.0).ln(m)
    if with_idle is None or without is None:
        return f"Idle time: not known, {m.why_missing(H.measure)}."
    share = f"the devices stood idle for {100 * (1 - busy):.1f} % of the training time"
    price = "" if H.idle_price == 1 else f" at {H.idle_price:g} of the price of busy time"
    return (
        f"Idle time: {share},{price} which makes L {100 * expm1(with_idle - without):.2f} % "
        f"higher (f_H {exp(with_idle):.4f} instead of {exp(without):.4f})."
    )


def _at(records: Sequence[Record], step: int) -> Record:
    for record in records:
        if record.step == step:
            return record
    steps = ", ".join(str(r.step) for r in records)
    raise ValueError(f"expected the step of a validation ({steps}), got {step}.")


def _change(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    return 0.0 if a == b else b - a


def _of_T(record: Record, formula: Formula) -> str:
    T = record.measurements.get(formula.T)
    return "-" if T is None else f"{T:.4f}"
