"""Each run against a baseline: with how much it reaches its perplexity, and why its L differs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from ..equation.formula import Formula
from ..record.comparable import best_record, rescored
from ..record.reaching import COSTS, Lowest, lowest, spending_to
from ..record.record import Record
from .cells import SPENDING_NAMES, number
from .noise_of_L import Difference, difference_of, scatter_of_each


def against_baseline(
    runs: Mapping[str, Sequence[Record]],
    baseline: str,
    formula: Formula | None,
    T: str = "perplexity",
    repeats: Sequence[Collection[str]] = (),
) -> str:
    """State, for each other run, what it takes to the baseline's perplexity and why its L differs.

    Args:
        runs: the validations of each by its name.
        baseline: the name of one of them.
        formula: that all share; None: there is none, and L is left out.
        T: in which they compare.
        repeats: see ``comparison``.
    """
    level = lowest(runs[baseline], T)
    if level is None:
        return f"{baseline} has no finite perplexity to hold the others against."
    shown = number(level.record.measurements.get(T))
    lines = [f"Against {baseline}, whose lowest {T.replace('_', ' ')} is {shown}:"]
    for name, said in sentences(runs, baseline, level, formula, T, repeats).items():
        first, *others = said
        lines += [f"  {name} {first}", *(f"  {' ' * len(name)} {text}" for text in others)]
    return "\n".join(lines)


def sentences(
    runs: Mapping[str, Sequence[Record]],
    baseline: str,
    level: Lowest,
    formula: Formula | None,
    T: str = "perplexity",
    repeats: Sequence[Collection[str]] = (),
) -> dict[str, list[str]]:
    """Return what is said of each other run: how it reaches the level, and why its L differs."""
    reached = spending_to(runs[baseline], level.ln_T, T) or {}
    best = {}
    scatter = {}
    if formula is not None:
        again = {name: rescored(records, formula) for name, records in runs.items()}
        best = {name: best_record(records) for name, records in again.items()}
        scatter = scatter_of_each(again, formula.T, repeats)
    found = {}
    for name, records in runs.items():
        if name == baseline:
            continue
        found[name] = [f"{_reach(reached, spending_to(records, level.ln_T, T))}."]
        a, b = best.get(baseline), best.get(name)
        if formula is None or a is None or b is None:
            continue
        difference = difference_of(formula, baseline, a, name, b, scatter)
        if difference is not None:
            found[name].append(why_L_differs(difference))
    return found


def _reach(baseline: Mapping[str, float], run: Mapping[str, float] | None) -> str:
    if run is None:
        return "does not reach it"
    shares = [
        f"{run[name] / baseline[name]:.2f} of its {SPENDING_NAMES[name]}"
        for name in COSTS
        if run.get(name) is not None and baseline.get(name)
    ]
    return f"reaches it with {', '.join(shares)}" if shares else "reaches it"


def why_L_differs(difference: Difference) -> str:
    """Say in which parts two values of L differ, and if that is more than noise."""
    ln_L, parts = difference.ln_L, difference.parts
    what = "lower" if ln_L < 0 else "higher"
    each = ", ".join(
        f"{'perplexity' if x == 'T' else x} {_signed(change)}" for x, change in parts.items()
    )
    text = f"{_percent(ln_L)} {what} L: {each}"
    if difference.is_tie:
        return f"{text}. A tie: {difference.why}."
    for letter, what in (("A", "the size of what it trains"), ("H", "machine time")):
        others = ln_L - parts[letter]
        if parts[letter] * ln_L > 0 and others * ln_L <= 0:
            return f"{text}. By f({letter}) alone: without {what} its L would be {_worse(others)}."
    return f"{text}."


def _worse(ln_L: float) -> str:
    return "equal" if ln_L == 0 else f"{_percent(ln_L)} {'lower' if ln_L < 0 else 'higher'}"


def _signed(change: float) -> str:
    value = 100 * math.expm1(min(change, 700.0))
    return f"{value:+.1f} %".replace("-", "\N{MINUS SIGN}")


def _percent(change: float) -> str:
    return f"{abs(100 * math.expm1(min(change, 700.0))):.1f} %"
