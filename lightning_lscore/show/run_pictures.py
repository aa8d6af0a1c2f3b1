"""The pictures of one run: what it cost, what L is made of, what more buys, and the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..equation.measures import GROWING, MEASURES
from ..record.comparable import best_record
from ..record.record import Record
from .cells import SPENDING_NAMES, count, duration
from .pictures import Picture, Series

NAN = math.nan
MOST = 200
"""Of the validations shown: of more every second, third, ... is."""


@dataclass(frozen=True)
class Axis:
    """What a run had spent at each of its validations."""

    measure: str
    name: str
    """For a reader, with the unit."""
    records: Sequence[Record]
    """Those with a value."""
    x: Sequence[float]

    @classmethod
    def of(cls, records: Sequence[Record], measure: str) -> Axis:
        """Return the axis of a measure of spending.

        Raises:
            ValueError: if it is none, or no validation has it.
        """
        if measure not in GROWING:
            raise ValueError(
                f"expected a measure of spending ({', '.join(GROWING)}), got {measure!r}."
            )
        known = [r for r in records if r.measurements.get(measure) is not None]
        if not known:
            why = records[-1].measurements.why_missing(measure)
            raise ValueError(f"expected validations with a value of {measure!r}: {why}.")
        x = [float(r.measurements.get(measure) or 0.0) for r in known]
        unit, scale = unit_of(measure, max(x))
        name = SPENDING_NAMES.get(measure, measure.replace("_", " "))
        shown = f"{name} [{unit}]" if unit else f"training {name}"
        return cls(measure, shown, known, [v * scale for v in x])


def thinned(records: Sequence[Record]) -> list[Record]:
    """Return about :data:`MOST` validations, the first, the best and the last among them."""
    step, best = -(-len(records) // MOST), best_record(records)
    return [r for i, r in enumerate(records) if i % step == 0 or r is records[-1] or r is best]


def unit_of(measure: str, largest: float) -> tuple[str, float]:
    """Return the unit to show a measure in, and how many of it its own unit is."""
    unit = MEASURES[measure].unit
    if unit == "h" and largest < 0.5:
        return "s", 3600.0
    return "" if unit in ("tokens", "money") else unit, 1.0


def pictures_of(records: Sequence[Record], axis: Axis) -> list[Picture]:
    """Return the pictures of a run, without lines and pictures of which nothing was measured.

    Args:
        records: validations that compare.
        axis: of these.
    """
    best, shown = best_record(records), axis.records
    marks = {}
    if best is not None and any(r is best for r in shown):
        marks["lowest L"] = axis.x[[r is best for r in shown].index(True)]
    if marks.get("lowest L") != axis.x[-1]:
        marks["end"] = axis.x[-1]
    drawn = []
    for made in (_cost(shown), _parts(shown), _worth(axis), _use(shown), _power(shown)):
        series = [s for s in made.pop("series") if any(map(math.isfinite, s.values))]
        if series:
            drawn.append(Picture(**made, series=series, x=axis.x, x_name=axis.name, marks=marks))
    return drawn


def readings_of(picture: Picture, records: Sequence[Record]) -> list[str]:
    """Return what a picture shows at each validation, in words."""
    found = []
    for i, record in enumerate(records):
        m = record.measurements
        values = [
            f"{s.name} {picture.form.format(s.values[i])}"
            for s in picture.series
            if math.isfinite(s.values[i])
        ]
        spent = f"step {record.step:,}, {count(m.tokens)} tokens, {duration(m.device_hours)}"
        found.append(f"{spent}: {', '.join(values) or 'not measured'}")
    return found


def _cost(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "key": "perplexity",
        "title": "Perplexity and what it cost",
        "text": "L is the perplexity charged for the data, the parameters and the machine time it "
        "took. While it falls, the run is worth its spending.",
        "series": [
            Series(name="perplexity", color="t", values=_scores(records, "perplexity")),
            Series(name="L", color="l", values=_scores(records, "L")),
        ],
        "form": "{:.4g}",
        "log": True,
    }


def _parts(records: Sequence[Record]) -> dict[str, Any]:
    names = {
        "perplexity": "perplexity",
        "f_D": "f(D) data",
        "f_A": "f(A) size",
        "f_H": "f(H) machine",
    }
    series = []
    for (name, shown), color in zip(names.items(), "tdah", strict=True):
        change = _since_the_first(_scores(records, name))
        if name == "perplexity" or any(abs(v) > 1e-9 for v in change):
            series.append(Series(name=shown, color=color, values=change))
    total = _since_the_first(_scores(records, "L"))
    series.append(Series(name="ln L, their sum", color="l", values=total))
    return {
        "key": "parts",
        "title": "Where L came from",
        "text": "Change of ln L since the first validation. The parts add up: what pulls down was "
        "bought, what pushes up was paid.",
        "series": series,
        "form": "{:+.3g}",
    }


def _worth(axis: Axis) -> dict[str, Any]:
    needed = [-v for v in _measured(axis.records, "elasticity_needed")]
    return {
        "key": "worth",
        "title": "Is the next percent worth it?",
        "text": "By how many percent 1 % more spending lowered perplexity, over some validations "
        "at a time, and by how many it has to for L to fall.",
        "series": [
            Series(name="bought", color="t", values=_bought(axis)),
            Series(name="has to buy", color="l", values=needed),
        ],
        "form": "{:.2g} %",
        "height": 2.5,
    }


def _use(records: Sequence[Record]) -> dict[str, Any]:
    names = {"busy_fraction": ("busy", "h"), "mfu": ("FLOPs used", "d")}
    return {
        "key": "use",
        "title": "The machine",
        "text": "Share of the time in which the devices were busy, and of their peak that the "
        "model used, since the run began. Gaps are times without a measurement.",
        "series": [
            Series(name=shown, color=color, values=[100 * v for v in _measured(records, name)])
            for name, (shown, color) in names.items()
        ],
        "form": "{:.0f} %",
        "height": 2.2,
    }


def _power(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "key": "power",
        "title": "Power",
        "text": "Mean power of the devices together since the run began.",
        "series": [Series(name="power", color="h", values=_measured(records, "power_watts"))],
        "form": "{:.4g} W",
        "height": 2.0,
    }


def _scores(records: Sequence[Record], name: str) -> list[float]:
    values = (getattr(r.score, name) for r in records)
    return [NAN if v is None or not math.isfinite(v) else v for v in values]


def _measured(records: Sequence[Record], name: str) -> list[float]:
    values = (r.measurements.get(name) for r in records)
    return [NAN if v is None else v for v in values]


def _since_the_first(values: Sequence[float]) -> list[float]:
    logs = [math.log(v) if v > 0 else NAN for v in values]
    first = next((v for v in logs if math.isfinite(v)), NAN)
    return [v - first for v in logs]


def _bought(axis: Axis) -> list[float]:
    """Return -d ln T / d ln x in %, over a twelfth of the validations to both sides."""
    y = [NAN if r.measurements.nll is None else r.measurements.nll for r in axis.records]
    n, k = len(y), max(1, len(y) // 12)
    found = []
    for i in range(n):
        a, b = max(0, i - k), min(n - 1, i + k)
        grown = axis.x[b] / axis.x[a] if axis.x[a] > 0 else 1.0
        found.append((y[a] - y[b]) / math.log(grown) if grown > 1 else NAN)
    return found
