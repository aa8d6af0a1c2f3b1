"""What a run's record says, in words and columns for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .records import Record


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
        factors = (_number(f) for f in (s.f_D, s.f_A, s.f_H))
        tokens, time = _count(m.tokens), _duration(m.train_hours)
        mark = "<" if r is best else ""
        L = _number(s.L)
        rows.append((str(r.step), tokens, time, _number(s.perplexity), *factors, L, mark))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def best_record(records: Sequence[Record]) -> Record | None:
    """The validation with the lowest L, None if no L is a number."""
    scored = [r for r in records if r.L is not None and not math.isnan(r.L)]
    return min(scored, key=lambda r: r.score.L, default=None)  # type: ignore[return-value, arg-type]


def spending_summary(records: Sequence[Record]) -> str:
    """What was spent, and what the spending after the best L bought."""
    if not records:
        return "no validation was recorded"
    last, best = records[-1], best_record(records)
    spent = [f"spent: {_spending(last)}"]
    m = last.measurements
    if m.mfu is not None:
        busy = "" if m.gpu_busy_fraction is None else f", busy {m.gpu_busy_fraction:.0%}"
        spent.append(f"model FLOPs utilisation {m.mfu:.1%} of the peak{busy}")
    if best is None:
        why = "; ".join(last.score.missing) or "every L is NaN"
        return "; ".join(spent) + f"\nno L was scored: {why}"
    lines = ["; ".join(spent), f"best L {best.L:.4f} at step {best.step}, for {_spending(best)}"]
    if len(records) > 1:
        lines.append(_after_the_best(best, last))
    return "\n".join(lines)


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
    parts = [f"{_count(m.tokens)} tokens", f"{_duration(m.device_hours)} of device time"]
    if m.energy_kwh is not None:
        parts.append(f"{m.energy_kwh:.3g} kWh")
    return ", ".join(parts)


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def _duration(hours: float | None) -> str:
    if hours is None:
        return "-"
    return f"{hours * 3600:.1f} s" if hours < 0.1 else f"{hours:.2f} h"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
