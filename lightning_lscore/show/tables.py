"""What a run's record says, in words and columns for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..record.compare import comparable_with_last, why_incomparable
from ..record.records import Record


def validation_table(records: Sequence[Record]) -> str:
    """One line a validation: what was spent, perplexity, the three factors and L.

    The best L is marked ``<``. What is missing shows as ``-``.
    """
    rows: list[tuple[str, ...]] = [
        ("step", "tokens", "time", "perplexity", "f_D", "f_A", "f_H", "L", "")
    ]
    best = best_record(records)
    for r in records:
        m, s = r.measurements, r.score
        factors = (number(f) for f in (s.f_D, s.f_A, s.f_H))
        tokens, time = count(m.tokens), duration(m.train_hours)
        mark = "<" if r is best else ""
        L = number(s.L)
        rows.append((str(r.step), tokens, time, number(s.perplexity), *factors, L, mark))
    return "\n".join(columns(rows))


def best_record(records: Sequence[Record]) -> Record | None:
    """The validation with the lowest L of those that compare with the last; None without one."""
    scored = [r for r in comparable_with_last(records) if r.L is not None and not math.isnan(r.L)]
    return min(scored, key=lambda r: r.score.L, default=None)  # type: ignore[return-value, arg-type]


def spending_summary(records: Sequence[Record]) -> str:
    """What was spent, and what the spending after the best L bought."""
    if not records:
        return "no validation was recorded"
    last, best = records[-1], best_record(records)
    spent = [f"spent: {_spending(last)}"]
    m = last.measurements
    if m.mfu is not None:
        busy = "" if m.busy_fraction is None else f", busy {m.busy_fraction:.0%}"
        spent.append(f"model FLOPs utilisation {m.mfu:.1%} of the peak{busy}")
    if best is None:
        why = "; ".join(last.score.missing) or "every L is NaN"
        return "; ".join(spent) + f"\nno L was scored: {why}"
    others = [reasons for r in records[:-1] if (reasons := why_incomparable(r, last))]
    if others:
        plural = "s" * (len(others) != 1)
        spent.append(f"{len(others)} validation{plural} left out: {others[-1][0]}")
    lines = ["; ".join(spent), f"best L {best.L:.4f} at step {best.step}, for {_spending(best)}"]
    if len(records) > 1:
        lines.append(_after_the_best(best, last))
    if last.prediction.get("growth", 0) > 1:
        lines.append(expectation(last))
    return "\n".join(lines)


def expectation(record: Record) -> str:
    """The best L that is expected, as a sentence; "" where nothing is."""
    p = record.prediction
    if "best_L" not in p:
        return f"no forecast of the best L: {p['reason']}" if "reason" in p else ""
    spent = f"{p['growth']:.3g} ({p['growth_low']:.3g} to {p['growth_high']:.3g}) times"
    return (
        f"expected, if the learning rate goes on as so far: best L {p['best_L']:.4f} "
        f"({p['best_L_low']:.4f} to {p['best_L_high']:.4f}) at {spent} what is spent now"
    )


def _after_the_best(best: Record, last: Record) -> str:
    if best is last:
        return "L was still falling at the end: more spending may be worth it"
    more = []
    for name in ("tokens", "device_hours"):
        before, after = best.measurements.get(name), last.measurements.get(name)
        if before and after:
            more.append(f"{after / before - 1:+.0%} {name.replace('_', ' ')}")
    spent = " and ".join(more) or "more spending"
    T0, T1 = best.score.perplexity, last.score.perplexity
    if not T0 or not T1 or not best.L or not last.L:
        return f"after that, {spent} brought no lower L"
    return (
        f"after that, {spent} changed perplexity by {T1 / T0 - 1:+.1%} "
        f"({T0:.4f} to {T1:.4f}) and L by {last.L / best.L - 1:+.1%}"
    )


def _spending(record: Record) -> str:
    m = record.measurements
    parts = [f"{count(m.tokens)} tokens", f"{duration(m.device_hours)} of device time"]
    if m.energy_kwh is not None:
        parts.append(f"{m.energy_kwh:.3g} kWh")
    return ", ".join(parts)


SHOWN_DEVICES = 16


def device_table(record: Record) -> str:
    """What each device did in training since the run began, one a line; "" if nothing is known.

    Of many devices those are shown that were busy least: who waits, and for whom, is told there.
    """
    seen = record.hardware
    keys = sorted(seen, key=lambda key: seen[key].get("busy_fraction", math.inf))[:SHOWN_DEVICES]
    if not any(seen.values()):
        return ""
    names = {d.get("key"): d.get("name") for d in record.devices}
    found = [name for name in _DEVICE_COLUMNS if any(name in seen[key] for key in keys)]
    rows = [("", "", *(_DEVICE_COLUMNS[name][0] for name in found))]
    for key in keys:
        values = ((seen[key].get(name), _DEVICE_COLUMNS[name][1]) for name in found)
        cells = ("-" if value is None else show.format(value) for value, show in values)
        rows.append((f"   {names.get(key, 'before a resume')}", key, *cells))
    more = len(seen) - len(keys)
    last = [f"   and {more} more, which were busy for more of the time"] if more else []
    return "\n".join(["Devices in training, since the run began:", *columns(rows, left=2), *last])


_DEVICE_COLUMNS = {
    "busy_fraction": ("busy", "{:.1%}"),
    "energy_kwh": ("energy", "{:.4g} kWh"),
    "power_watts": ("power", "{:.1f} W"),
    "memory_mean_gib": ("memory", "{:.2f} GiB"),
    "memory_peak_gib": ("peak", "{:.2f} GiB"),
    "sm_clock_mhz": ("clock", "{:.0f} MHz"),
    "throttled_fraction": ("throttled", "{:.1%}"),
    "throttled_by_power_fraction": ("by power", "{:.1%}"),
    "throttled_by_heat_fraction": ("by heat", "{:.1%}"),
    "coverage": ("sampled", "{:.1%}"),
}


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
