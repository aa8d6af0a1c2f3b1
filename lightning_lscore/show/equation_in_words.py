"""The equation in words and numbers: its letters, what its weights ask for, a worked example."""

from __future__ import annotations

import math
import textwrap

from ..equation.any_factor import AnyFactor
from ..equation.factor import TRAINING_TIME, Factor
from ..equation.formula import Formula
from ..equation.law import PLANNED_MFU
from ..equation.measurements import Measurements
from ..equation.measures import MEASURES
from ..equation.safe_numbers import expm1
from .cells import adding_up, amount, columns

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
is an exchange rate: doubling x must buy 1 - f(x)/f(2x) lower perplexity, or L rises. c = 0 is a
plain power, for what is fixed by the model: 1 - 2^-w from any x. c = 1, for what grows during a
run, charges a doubling less before the reference and more after it, or the first validation would
look best merely because little was spent. At w = 0 a factor is off.
"""

SIZES = (1e7, 1e8, 1e9, 1e10)  # of the table of rates
OWN_PLAN = """\
The references are this run's own plan: at the end of any plan L is about the perplexity, however
much was spent, so L of runs with other plans does not compare. To compare runs freeze one formula,
Formula.from_record("RUN").save("study.json"), and give it to each: LScore("study.json").
"""


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
            _wrapped(
                "Without a formula of one's own the references are the run's own plan, and L is "
                "the perplexity at its end if the machine ran at "
                f"{100 * PLANNED_MFU:g} % of its peak. Every weight is "
                f"{_weight(plan.D):g}, whatever the model. "
                f"{_doubling(plan, 'DH', 'the data and the time')} Such values of L do not compare "
                "across runs with other plans."
            ),
            "",
            _wrapped(
                "By the scaling law, for pre-training from scratch (Formula.for_model), doubling "
                "the parameters from the reference, and so the time, must buy as follows. The "
                "law's optimum under such a formula is its own reference: the law turns a budget "
                "into exchange rates, and cannot say how large a budget should be."
            ),
            "",
        ]
        for size in SIZES:
            law = Formula.for_model(size)
            rate = percent(must_buy(law, "AH"))
            lines.append(f"    {rate:>7} lower perplexity at {size:.0e} parameters")
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
    shown = adding_up(parts)
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


_TIMES = (*TRAINING_TIME, "wall_hours", "energy_kwh", "emissions_kg")


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
            rows.append((f"   {x}", name, amount(factor.reference, factor), weight, c, half, twice))
        else:
            rows.append(
                (f"   {x}", f"{factor:g}" if isinstance(factor, float) else "a function", *[""] * 5)
            )
    lines = [
        f"The rates of formula {formula.id} ({formula.origin}):",
        "",
        *columns(rows, left=2),
        "",
    ]
    H = formula.H
    time = " and the time" if isinstance(H, Factor) and H.measure in _TIMES else ""
    for letters, what in (("DH", f"the data{time}"), ("AH", f"the size{time}")):
        if _weight(getattr(formula, letters[0])) and _weight(H):
            lines.append(_wrapped(_doubling(formula, letters, what)))
    if formula.origin.startswith("the run's own plan"):
        lines += ["", OWN_PLAN.rstrip()]
    return "\n".join(lines) + "\n"


def _doubling(formula: Formula, letters: str, what: str) -> str:
    whole, half, tenth = (percent(must_buy(formula, letters, x)) for x in (1.0, 0.5, 0.1))
    if whole == tenth:
        return f"Doubling {what} must buy {whole} lower perplexity."
    return (
        f"Doubling {what} must buy {tenth} lower perplexity from a tenth of the reference, {half} "
        f"from half of it, {whole} from the reference itself."
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=98)


def must_buy(formula: Formula, letters: str, x: float | Measurements = 1.0) -> float:
    """Return how much lower perplexity must be, in %, when the measures of some letters double.

    Args:
        formula: that charges for them; a constant or a function counts as charging nothing.
        letters: some of D, A and H.
        x: where they stand, in units of their references, or as measured.
    """
    ln_f = 0.0
    for letter in letters:
        factor = getattr(formula, letter)
        if isinstance(factor, Factor):
            at = x if isinstance(x, float) else (factor.priced(x) or 0.0) / factor.reference
            ln_f += factor.doubling(at)
    return -100 * expm1(-ln_f)


def percent(value: float) -> str:
    return f"{value:.{1 if value >= 1 else 2}f} %"


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
