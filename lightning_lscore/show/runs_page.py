"""The page of several runs: which reached a perplexity for less, and why their L differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ..equation.formula import Formula
from ..record.comparable import best_record, rescored
from ..record.reaching import COSTS, evaluated_alike, lowest, spending_to
from ..record.record import Record
from . import page
from .against_baseline import sentences
from .cells import SPENDING_NAMES, Table, duration, number
from .comparison import common_T, shared_formula
from .noise_of_L import difference_of, scatter_of_each
from .pareto_front import without_a_formula
from .pictures import Picture, Series
from .ranked_by_L import ranked_by_L
from .run_pictures import thinned, unit_of

NAMED = 8
"""Of so many runs each line has its name; of more, those on the front alone."""


def page_of_runs(
    runs: Mapping[str, Sequence[Record]],
    *,
    baseline: str | None = None,
    formula: Formula | None = None,
    over: Sequence[str] = COSTS,
) -> tuple[str, list[Picture]]:
    """Return a self-contained page that compares runs, and its pictures.

    Args:
        runs: the validations of each by its name, at least two.
        baseline: name of the one to hold the others against. Default: the first.
        formula: under which all are scored. Default: the one that all share, if they do.
        over: measures of spending to show their perplexity against; one that fewer than two runs
            have is left out.

    Raises:
        ValueError: as ``comparison``.
    """
    baseline = next(iter(runs)) if baseline is None else baseline
    if baseline not in runs:
        raise ValueError(
            f"expected the name of one of the runs ({', '.join(runs)}), got {baseline}."
        )
    shared = formula or shared_formula(runs)
    T = common_T(runs, shared)
    table = without_a_formula(runs, T) if shared is None else ranked_by_L(runs, shared)
    order = [row[0] for row in table.rows]
    pictures = [_front(runs, order, cost, T) for cost in over if _known(runs, cost)]
    readings = [f"{name}: {number(_lowest(runs[name], T))}" for name in order]
    body = [
        *(page.figure(picture, readings) for picture in pictures),
        page.section("Side by side", *_side_by_side(table)),
        page.section(f"Against {baseline}", _reached(runs, baseline, shared, T)),
        "" if shared is None else _parts(runs, baseline, shared),
        page.section("What differs", _differences(runs)),
    ]
    scored = "formulas of their own" if shared is None else f"formula {shared.id} ({shared.origin})"
    below = f"{len(runs)} runs · scored under {scored}"
    return page.page("Runs compared", headline_of_runs(runs, baseline, T), below, body), pictures


def _lowest(records: Sequence[Record], T: str) -> float | None:
    low = lowest(records, T)
    return None if low is None else low.record.measurements.get(T)


def headline_of_runs(runs: Mapping[str, Sequence[Record]], baseline: str, T: str) -> str:
    """Return which run reaches the baseline's perplexity for the least, in a sentence."""
    level = lowest(runs[baseline], T)
    if level is None:
        return f"{baseline} has no finite perplexity to hold the others against."
    own = spending_to(runs[baseline], level.ln_T, T) or {}
    shown = f"{math.exp(min(level.ln_T, 700.0)):.4g}"
    for cost in ("device_hours", "tokens"):
        found = {
            name: reached[cost] / own[cost]
            for name, records in runs.items()
            if name != baseline and own.get(cost)
            if (reached := spending_to(records, level.ln_T, T)) and cost in reached
        }
        if found:
            name = min(found, key=found.__getitem__)
            share = f"{found[name]:.2f} of its {SPENDING_NAMES[cost]}"
            if found[name] < 1:
                return f"{name} reaches {baseline}'s perplexity of {shown} with {share}."
    return f"No other run reaches {baseline}'s perplexity of {shown} for less."


def _known(runs: Mapping[str, Sequence[Record]], cost: str) -> bool:
    return sum(bool(records[-1].measurements.get(cost)) for records in runs.values()) > 1


def _front(
    runs: Mapping[str, Sequence[Record]], order: Sequence[str], cost: str, T: str
) -> Picture:
    """Return perplexity against a measure of spending, with the front over all validations."""
    curves = {}
    for name in order:
        found = evaluated_alike(thinned(runs[name]), T)
        spent = [(r.measurements.get(cost), y) for r, y in found]
        curves[name] = [(float(x), math.exp(min(y, 700.0))) for x, y in spent if x is not None]
    largest = max((x for points in curves.values() for x, _ in points), default=0.0)
    unit, scale = unit_of(cost, largest)
    curves = {name: [(x * scale, y) for x, y in points] for name, points in curves.items()}
    every = sorted((p, name) for name, points in curves.items() for p in points)
    front: list[tuple[float, float]] = []
    on_it: set[str] = set()
    for point, name in every:
        if not front or point[1] < front[-1][1]:
            front.append(point)
            on_it.add(name)
    series, colors = [], "tdha"
    for i, (name, points) in enumerate(curves.items()):
        strong = name in on_it or len(curves) <= NAMED
        x, y = zip(*points, strict=True) if points else ((), ())
        color = colors[i % 4] if name in on_it else "mut" if strong else "line"
        series.append(Series(name=name, color=color, values=y, x=x, named=strong))
    x, y = zip(*front, strict=True)
    series.append(Series(name="front", color="l", values=y, x=x, named=False))
    what = SPENDING_NAMES[cost]
    return Picture(
        key=f"front-{cost.replace('_', '-')}",
        title=f"Perplexity against {what}",
        text="The red line is the Pareto front: the least that any run paid for a perplexity.",
        x=(),
        x_name=f"{what} [{unit}]" if unit else what,
        series=series,
        marks={},
        form="{:.4g}",
        log=True,
    )


def _side_by_side(table: Table) -> list[str]:
    above = "".join(f"<p>{escape(line)}</p>" for line in table.above)
    rows = [[cell.strip() for cell in row] for row in table.rows]
    marks = {0: ("best", "")} if "L" in table.head else {}
    shown = page.table(table.head, rows, marks=marks, indices=range(len(rows)))
    return [above, shown, page.bullets([line for line in table.below if line])]


def _reached(
    runs: Mapping[str, Sequence[Record]], baseline: str, shared: Formula | None, T: str
) -> str:
    level = lowest(runs[baseline], T)
    if level is None:
        return ""
    said = sentences(runs, baseline, level, shared, T)
    return page.bullets([f"{name} {' '.join(each)}" for name, each in said.items()])


def _parts(runs: Mapping[str, Sequence[Record]], baseline: str, formula: Formula) -> str:
    """Return the parts of each run's difference in ln L as bars."""
    again = {name: rescored(records, formula) for name, records in runs.items()}
    best = {name: best_record(records) for name, records in again.items()}
    scatter, a = scatter_of_each(again, formula.T), best[baseline]
    found = {}
    for name, b in best.items():
        if name != baseline and a is not None and b is not None:
            found[name] = difference_of(formula, baseline, a, name, b, scatter)
    known = {name: d for name, d in found.items() if d is not None}
    if not known:
        return ""
    widest = max(max(abs(p) for p in (*d.parts.values(), d.ln_L)) for d in known.values()) or 1.0
    names = {"T": "perplexity", "D": "data", "A": "size", "H": "machine"}
    html = []
    for name, d in known.items():
        bars = "".join(_bar(names[x], x.lower(), p, widest) for x, p in d.parts.items())
        html.append(f"<h3>{escape(name)}</h3>{bars}{_bar('L', 'l', d.ln_L, widest)}")
    text = "Difference of ln L at the best L of each: to the left better, to the right worse."
    return page.section(f"Why L differs from that of {baseline}", f"<p>{text}</p>", *html)


def _bar(name: str, color: str, part: float, widest: float) -> str:
    share = 50 * abs(part) / widest
    left = 50 - share if part < 0 else 50
    style = f"left:{left:.2f}%;width:{share:.2f}%;background:var(--{color})"
    value = f"{100 * math.expm1(min(part, 700.0)):+.1f} %"
    bar = f'<div><i style="{style}"></i></div>'
    return f'<div class="bar"><span>{name}</span>{bar}<span>{value}</span></div>'


def _differences(runs: Mapping[str, Sequence[Record]]) -> str:
    """Return what is not the same in all runs: size, data, devices, versions, assumptions."""
    said: dict[str, dict[str, str]] = {}
    for name, records in runs.items():
        last = records[-1]
        m = last.measurements
        facts = {
            "trainable parameters": "-"
            if m.trainable_parameters is None
            else f"{m.trainable_parameters:,}",
            "training tokens": "-" if m.tokens is None else f"{m.tokens:,}",
            "device time": duration(m.device_hours),
            "devices": ", ".join(sorted({f"{d.name}, {d.dtype}" for d in last.devices})),
            **{f"version of {k}": v for k, v in last.versions.items()},
            **dict(last.assumptions),
        }
        for what, value in facts.items():
            said.setdefault(what, {})[name] = value
    rows = [
        (what, *(values.get(name, "-") for name in runs))
        for what, values in said.items()
        if len({values.get(name, "-") for name in runs}) > 1
    ]
    if not rows:
        return "<p>Nothing that the records know.</p>"
    return page.table(("", *runs), rows, text_columns=range(1, len(runs) + 1))
