"""The equation in words and numbers: in general, by an example, and for a run's own record."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..equation.factor import TRAINING_TIME, AnyFactor, Factor
from ..equation.formula import Formula
from ..equation.measurements import Measurements
from ..equation.measures import MEASURES
from ..equation.safe_numbers import exp
from ..record.compare import comparable_with_last
from ..record.records import Record
from .tables import best_record, columns, device_table, expectation

if TYPE_CHECKING:
    from ..curve.calibration import Calibration

_LETTERS = {
    "T": "held-out text: how well the model predicts it",
    "D": "training algorithm: how much data it consumes",
    "A": "architecture: how large the model is",
    "H": "hardware: how much machine it occupies",
}

_EQUATION = """\
    L = perplexity(T) · f(D) · f(A) · f(H)

L is the cost-adjusted perplexity: held-out perplexity, charged for what was spent to reach it.
Lower is better. While L falls, spending pays; where it turns upwards, it no longer does.
"""

_FACTOR = """\
Each factor charges for one measure x, in units of a reference:

    f(x) = ((c + x)/(c + 1)) ^ (w·(1 + c))

f(1) = 1: at its reference a measure charges nothing; below it f < 1, above it f > 1. The weight w
is an exchange rate: doubling x must buy about 1 - 2^-w lower perplexity, or L rises. c = 0 is a
plain power, for what is fixed by the model; c = 1, for what grows during a run, keeps the first
validation from looking best merely because little was spent. At w = 0 a factor is off.
"""

SIZES = (1e7, 1e8, 1e9, 1e10)  # of the table of rates


def overview(formula: Formula | None = None) -> str:
    """What L is, for a person who has never seen it: letters, rates and a worked example.

    Args:
        formula: whose rates to explain. Default: the default formula's, and those of the law.
    """
    measures = formula or Formula.for_model(SIZES[1])
    letters = [
        f"    {x}  {text}\n       {_measured_by(x, measures)}" for x, text in _LETTERS.items()
    ]
    if formula is not None:
        rates = exchange_rates(formula)
    else:
        plan = Formula.for_plan(parameters=int(SIZES[1]))
        lines = [
            "Without a formula of one's own the reference is the run's own plan, and L is the",
            f"perplexity at its end. Every weight is {_weight(plan.D):g}: twice the tokens and the",
            f"time must buy {_must_buy(plan, 'DH')} lower perplexity, whatever the model.",
            "",
            "By the scaling law, for pre-training from scratch (Formula.for_model), doubling the",
            "parameters, and so the time, must buy",
            "",
        ]
        for size in SIZES:
            law = Formula.for_model(size)
            lines.append(f"    {_must_buy(law, 'AH'):>7} lower perplexity at {size:.0e} parameters")
        rates = "\n".join(lines) + "\n"
    return "\n".join(
        [_EQUATION, *letters, "", _FACTOR, rates, worked_example(20, 0.95, 0.90, 0.85)]
    )


def worked_example(perplexity: float, D: float, A: float, H: float) -> str:
    """L of a perplexity and three factors, as a product and as a sum of logarithms.

    Raises:
        ValueError: for a perplexity or a factor that is no finite number > 0.
    """
    formula, m = Formula(D=D, A=A, H=H), Measurements(perplexity=perplexity)
    L, parts = formula.score(m).L, formula.ln_parts(m)
    if L is None or not 0 < L < math.inf:
        raise ValueError(f"perplexity: expected a finite number > 0, got {perplexity:g}.")
    shown = _adding_up(parts)
    logs = shown.pop("T").lstrip("+") + "".join(
        f" {s[0]} {s[1:]}" for x, s in shown.items() if x != "L"
    )
    charges = [
        f"{abs(100 * (f - 1)):.3g} % {'off' if f < 1 else 'on top'} for the {what}"
        for f, what in ((D, "data"), (A, "size"), (H, "machines"))
        if f != 1
    ]
    return (
        f"For example: {perplexity:g} · {D:g} · {A:g} · {H:g} = {L:.6g}\n"
        f"({', '.join(charges) or 'nothing is charged'}),\n"
        f"or in logarithms, whose parts add up: {logs} = {shown['L'].lstrip('+')}\n"
    )


def exchange_rates(formula: Formula) -> str:
    """What each factor of a formula charges for, and what a doubling must buy."""
    rows: list[tuple[str, ...]] = [
        ("   ", "measure", "reference", "w", "c", "f at half", "f at twice")
    ]
    for x in "DAH":
        factor = getattr(formula, x)
        if isinstance(factor, Factor):
            c, half, twice = f"{factor.c:g}", f"{factor.f(0.5):.4f}", f"{factor.f(2):.4f}"
            level = "" if factor.level is None else f" (perplexity {factor.level:g})"
            name, weight = f"{factor.measure}{level}", f"{factor.weight:.4g}"
            rows.append(
                (f"   {x}", name, _amount(factor.reference, factor), weight, c, half, twice)
            )
        else:
            rows.append(
                (f"   {x}", f"{factor:g}" if isinstance(factor, float) else "a function", *[""] * 5)
            )
    lines = [f"The rates of this formula ({formula.origin}):", "", *columns(rows, left=2), ""]
    H = formula.H
    time = " and the time" if isinstance(H, Factor) and H.measure in _TIMES else ""
    for letters, what in (("DH", f"the data{time}"), ("AH", f"the size{time}")):
        if _weight(getattr(formula, letters[0])) and _weight(H):
            rate = _must_buy(formula, letters)
            lines.append(f"Doubling {what} must buy {rate} lower perplexity.")
    return "\n".join(lines) + "\n"


_TIMES = (*TRAINING_TIME, "wall_hours", "energy_kwh", "emissions_kg")


def explain_run(records: Sequence[Record], start: int | None = None, end: int | None = None) -> str:
    """What moved L in a run: the part of T and of each factor between validations.

    Args:
        records: of one run, under one formula; at least one.
        start: step of the validation to begin with. Default: first to best L, and best to last.
        end: step of the validation to end with. Default: the last one.

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
    text.append(idle_cost(formula, last))
    if said := expectation(last):
        text.append(f"{said[0].upper()}{said[1:]}{'' if said.endswith('.') else '.'}")
    if devices := device_table(last):
        text += ["", devices]
    return "\n".join([*text, ""])


def _between(formula: Formula, a: Record, b: Record, best: Record) -> str:
    parts = [formula.ln_parts(r.measurements) for r in (a, b)]
    changes = {x: _change(parts[0][x], parts[1][x]) for x in "TDAH"}
    percent = {x: _percent_change(change) for x, change in changes.items()}
    known = [change for change in changes.values() if change is not None]
    if len(known) == len(changes):
        percent["L"] = _percent_change(sum(known))
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
    shown = _adding_up(parts)
    rows: list[tuple[str, ...]] = [("   ", "", *(f"step {r.step}" for r in records), *titles)]
    for x in "TDAH":
        factor = getattr(formula, x)
        name = factor if isinstance(factor, str) else "a constant"
        amounts = [_of_T(r, formula) if x == "T" else "" for r in records]
        if isinstance(factor, Factor):
            name = factor.measure
            amounts = [_amount(factor.priced(r.measurements), factor) for r in records]
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
        f"Idle time: {share},{price} which makes L {100 * math.expm1(with_idle - without):.2f} % "
        f"higher (f_H {exp(with_idle):.4f} instead of {exp(without):.4f})."
    )


def explain_calibration(c: Calibration) -> str:
    """The rates that finished runs have shown, how sure they are, and what to beware of."""
    rows = [("   ", "", "", "90 % interval")]
    for name, text in (("e_N", "1 % more parameters lowered"), ("e_D", "1 % more tokens lowered")):
        rows.append(
            (f"   {text} perplexity by", f"{getattr(c, name):.3f} %", "", _interval(c, name, " %"))
        )
    for x in "DAH":
        rows.append(
            (f"   weight of {x}", f"{getattr(c, f'w_{x}'):.4f}", "", _interval(c, f"w_{x}"))
        )
    lines = [
        f"{c.runs} finished runs of different size or length. At {c.parameters:.3g} parameters and "
        f"{c.tokens:.3g} tokens:",
        "",
        *columns(rows, left=1),
        "",
    ]
    for name, what in (("e_N", "parameters"), ("e_D", "tokens")):
        e, i = getattr(c, name), getattr(c, f"{name}_interval")
        low, high = (f"{_bought(v):.1f}" for v in (max(0.0, i.low), i.high))
        lines.append(
            f"Doubling the {what}, and so the time, must buy {_bought(e):.1f} % lower perplexity "
            f"({low} to {high} %)."
        )
    return "\n".join([*lines, *(f"Warning: {w}" for w in c.warnings)])


def _interval(c: Calibration, name: str, unit: str = "") -> str:
    interval = getattr(c, f"{name}_interval")
    return f"{interval.low:.3f} to {interval.high:.3f}{unit}"


def _bought(rate: float) -> float:
    return -100 * math.expm1(-rate * math.log(2))


# ---------------------------------------------------------------------- small things


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


def _adding_up(changes: dict[str, float | None]) -> dict[str, str]:
    """The changes with four decimals, so rounded that the column adds up to its total, "L"."""
    known = {x: c for x, c in changes.items() if c is not None and math.isfinite(c)}
    units = {x: math.floor(c * 1e4) for x, c in known.items()}
    total = round(math.fsum(known.values()) * 1e4)
    by_rest = sorted(known, key=lambda x: known[x] * 1e4 - units[x], reverse=True)
    for x in by_rest[: total - sum(units.values())]:
        units[x] += 1
    shown = {x: f"{units[x] / 1e4:+.4f}" if x in units else "-" for x in changes}
    return {**shown, "L": f"{total / 1e4:+.4f}"}


def _of_T(record: Record, formula: Formula) -> str:
    T = record.measurements.get(formula.T)
    return "-" if T is None else f"{T:.4f}"


def _measured_by(letter: str, formula: Formula) -> str:
    factor = formula.T if letter == "T" else getattr(formula, letter)
    if isinstance(factor, str):
        return f"{factor}: {MEASURES[factor].meaning}"
    if not isinstance(factor, Factor):
        return f"the constant {factor:g}" if isinstance(factor, float) else "a function"
    meaning = "a measure of your own" if factor.own else MEASURES[factor.measure].meaning
    return f"{factor.measure}: {meaning}"


def _weight(factor: AnyFactor) -> float:
    return factor.weight if isinstance(factor, Factor) else 0.0


def _must_buy(formula: Formula, letters: str) -> str:
    return f"{_bought(sum(_weight(getattr(formula, x)) for x in letters)):.1f} %"


def _amount(value: float | None, factor: Factor) -> str:
    if value is None:
        return "-"
    unit = "" if factor.own else MEASURES[factor.measure].unit
    if unit == "h" and value < 0.1:
        value, unit = value * 3600, "s"
    return (
        f"{value:,.4g} {unit}".rstrip() if 1e-3 <= value < 1e6 else f"{value:.3e} {unit}".rstrip()
    )


def _percent_change(change: float | None) -> str:
    return "-" if change is None else f"{100 * math.expm1(min(change, 700.0)):+.2f} %"
