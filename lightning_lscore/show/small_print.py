"""What stands in small print below a run: formula, sources of each figure, devices, versions."""

from __future__ import annotations

from collections.abc import Mapping

from ..equation.factor import Factor
from ..equation.formula_json import id_of
from ..equation.measures import MEASURES
from ..record.record import Record
from . import page
from .cells import amount


def small_print(record: Record) -> list[str]:
    """Return formula, provenance, assumptions, devices and versions of a validation, as HTML."""
    return [
        page.section(f"Formula {id_of(record.formula)}", _formula_table(record)),
        page.section("Where each figure came from", _provenance(record)),
        page.section("What LScore took for granted", _named(record.assumptions)),
        page.section("Devices", _devices(record)),
        page.section("Versions", _named(record.versions)),
    ]


def _formula_table(record: Record) -> str:
    rows = []
    for letter in "TDAH":
        factor = record.formula.get(letter, "perplexity" if letter == "T" else 1.0)
        named = {*factor} if isinstance(factor, dict) else set()
        if {"measure", "reference"} <= named <= {*Factor.__dataclass_fields__}:
            f = Factor(**factor)
            rows.append((letter, f.measure, amount(f.reference, f), f"{f.weight:.4g}", f"{f.c:g}"))
        else:
            what = factor if isinstance(factor, str) else f"{factor}"
            rows.append((letter, what, "", "", ""))
    return page.table(("", "measure", "reference", "weight w", "c"), rows, text_columns=(1,))


def _provenance(record: Record) -> str:
    m, rows = record.measurements, []
    for name, how in m.provenance.items():
        value = m.get(name) if name in MEASURES else m.own.get(name)
        unit = MEASURES[name].unit if name in MEASURES else ""
        shown = (
            "-"
            if value is None
            else f"{value:{MEASURES[name].shown if name in MEASURES else ',.4g'}}"
        )
        rows.append((name, f"{shown} {unit}".strip(), how))
    return page.table(("measure", "value", "how"), rows, text_columns=(2,))


def _named(texts: Mapping[str, str]) -> str:
    rows = list(texts.items())
    return page.table(("what", ""), rows, text_columns=(1,)) if rows else "<p>Nothing.</p>"


def _devices(record: Record) -> str:
    rows = []
    for d in record.devices:
        use = record.hardware.get(d.key)
        peak = "-" if d.peak_flops is None else f"{d.peak_flops / 1e12:.4g} TFLOP/s {d.dtype}"
        busy = "-" if use is None or use.busy_fraction is None else f"{use.busy_fraction:.1%}"
        energy = "-" if use is None or use.energy_kwh is None else f"{use.energy_kwh:.4g} kWh"
        rows.append((d.name, peak, busy, energy, d.peak_source))
    return page.table(("device", "peak", "busy", "energy", "source"), rows, text_columns=(4,))
