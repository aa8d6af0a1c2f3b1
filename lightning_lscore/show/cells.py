"""Numbers and aligned columns for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..equation.factor import Factor
from ..equation.measures import MEASURES
from ..equation.safe_numbers import expm1

SPENDING_NAMES = {
    "tokens": "tokens",
    "device_hours": "device time",
    "energy_kwh": "energy",
    "cost": "cost",
}
"""What people call the measures in which they pay."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a head, with what is said above and below them."""

    above: Sequence[str] = ()
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: Sequence[str] = ()

    def in_terminal(self, left: int = 1) -> str:
        """Return it as text; the first ``left`` columns to the left, the others to the right."""
        lines = [*self.above, "", *columns([self.head, *self.rows], left=left)]
        return "\n".join([*lines, *(["", *self.below] if self.below else [])])


def columns(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Aligned lines; the first ``left`` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def count(value: float | None) -> str:
    """Such as 12.30M."""
    if value is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def duration(hours: float | None) -> str:
    """In hours, or in seconds where that is short."""
    if hours is None:
        return "-"
    return f"{hours * 3600:.1f} s" if hours < 0.1 else f"{hours:.2f} h"


def number(value: float | None) -> str:
    """With four decimals."""
    return "-" if value is None else f"{value:.4f}"


def adding_up(changes: dict[str, float | None]) -> dict[str, str]:
    """The changes with four decimals, so rounded that the column adds up to its total, "L"."""
    known = {x: c for x, c in changes.items() if c is not None and math.isfinite(c)}
    units = {x: math.floor(c * 1e4) for x, c in known.items()}
    total = round(math.fsum(known.values()) * 1e4)
    by_rest = sorted(known, key=lambda x: known[x] * 1e4 - units[x], reverse=True)
    for x in by_rest[: total - sum(units.values())]:
        units[x] += 1
    shown = {x: f"{units[x] / 1e4:+.4f}" if x in units else "-" for x in changes}
    return {**shown, "L": f"{total / 1e4:+.4f}"}


def amount(value: float | None, factor: Factor) -> str:
    if value is None:
        return "-"
    unit = "" if factor.own else MEASURES[factor.measure].unit
    if unit == "h" and value < 0.1:
        value, unit = value * 3600, "s"
    return (
        f"{value:,.4g} {unit}".rstrip() if 1e-3 <= value < 1e6 else f"{value:.3e} {unit}".rstrip()
    )


def percent_change(change: float | None) -> str:
    return "-" if change is None else f"{100 * expm1(min(change, 700.0)):+.2f} %"


def bought(rate: float) -> float:
    return -100 * expm1(-rate * math.log(2))
