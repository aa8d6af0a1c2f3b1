"""The page of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..equation.formula_json import id_of
from ..record.comparable import best_record, comparable_with_last
from ..record.record import Record
from . import page
from .cells import count, duration, number
from .doubts import doubts, in_words
from .headline import headline
from .pictures import Picture
from .run_pictures import Axis, pictures_of, readings_of, thinned
from .small_print import small_print


def page_of_run(
    name: str, records: Sequence[Record], over: str = "tokens"
) -> tuple[str, list[Picture]]:
    """Return a self-contained page about a run, and its pictures.

    Args:
        name: of the run, for a reader.
        records: its validations, at least one.
        over: the measure of spending on the x axis.

    Raises:
        ValueError: if no validation has that measure.
    """
    alike, last = comparable_with_last(records), records[-1]
    shown = thinned(alike)
    axis = Axis.of(shown, over)
    pictures = pictures_of(shown, axis)
    every = (
        "Every validation"
        if len(shown) == len(alike)
        else f"{len(shown)} of {len(alike)} validations"
    )
    body = [
        page.cards(_cards(records)),
        *(page.figure(picture, readings_of(picture, axis.records)) for picture in pictures),
        page.section(every, _validations(shown, axis)),
        page.section("In words", page.bullets(in_words(records))),
        page.section("Doubts", page.bullets(doubts(records))),
        page.small_print("Formula, sources of every figure, versions", *small_print(last)),
    ]
    return page.page(name, headline(records), _below(name, last), body), pictures


def _cards(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    last, best = records[-1], best_record(records)
    alike = comparable_with_last(records)
    m = last.measurements
    known = [
        r for r in alike if r.measurements.nll is not None and math.isfinite(r.measurements.nll)
    ]
    low = min(known, key=lambda r: r.measurements.nll or 0.0, default=last)
    held_out = "" if m.validation_tokens is None else f" · {m.validation_tokens:,} tokens held out"
    paid = f"{m.cost:,.2f} paid" if m.cost is not None else "no price given"
    if m.energy_kwh is not None:
        paid = f"{m.energy_kwh:.3g} kWh · {paid}"
    found = [("lowest perplexity", number(low.score.perplexity), f"step {low.step:,}{held_out}")]
    if best is not None:
        now = "at the end" if best is last else f"now {number(last.L)}"
        found.append(("lowest L", number(best.L), f"step {best.step:,} · {now}"))
    found.append(
        (
            "spent",
            f"{count(m.tokens)} tokens",
            f"{duration(m.device_hours)} of device time · {paid}",
        )
    )
    if m.mfu is not None:
        busy = "" if m.busy_fraction is None else f"busy {m.busy_fraction:.0%} of the time"
        found.append(("model FLOPs utilisation", f"{m.mfu:.1%}", busy or "of the devices' peak"))
    return found


def _below(name: str, last: Record) -> str:
    m = last.measurements
    parameters = None if m.total_parameters is None else f"{count(m.total_parameters)} parameters"
    kinds: dict[str, int] = {}
    for device in last.devices:
        kinds[device.name] = kinds.get(device.name, 0) + 1
    devices = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
    origin = last.formula.get("origin", "given")
    parts = [name, last.time[:10], parameters, devices, f"formula {id_of(last.formula)} ({origin})"]
    return " · ".join(p for p in parts if p)


def _validations(records: Sequence[Record], axis: Axis) -> str:
    best = best_record(records)
    head = ("step", "tokens", "device time", "perplexity", "f(D)", "f(A)", "f(H)", "L")
    rows, marks = [], {}
    place = {id(r): i for i, r in enumerate(axis.records)}
    for i, r in enumerate(records):
        m, s = r.measurements, r.score
        scores = [number(v) for v in (s.perplexity, s.f_D, s.f_A, s.f_H, s.L)]
        rows.append((f"{r.step:,}", count(m.tokens), duration(m.device_hours), *scores))
        if r is best:
            marks[i] = ("best", "lowest L")
    indices = [place.get(id(r), -1) for r in records]
    return page.table(head, rows, marks=marks, indices=indices)
