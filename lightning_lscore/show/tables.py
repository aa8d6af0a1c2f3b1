"""What a run's record says, in words and columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ..equation.prediction import Prediction, Unpredictable
from ..record.comparable import best_record, why_incomparable
from ..record.record import Record
from .cells import columns, count, duration, number


def validation_table(records: Sequence[Record]) -> str:
    """One line a validation: what was spent, perplexity, the three factors and L.

    The best L is marked ``<``. What is missing shows as ``-``.
    """
    best = best_record(records)
    rows = [
        (*cells, "<" if r is best else "")
        for r, cells in zip(records, rows_of(records), strict=True)
    ]
    return "\n".join(columns([(*COLUMNS, ""), *rows]))


COLUMNS = ("step", "tokens", "time", "perplexity", "f_D", "f_A", "f_H", "L")


def rows_of(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return what the table shows of each validation, under :data:`COLUMNS`."""
    rows = []
    for r in records:
        m, s = r.measurements, r.score
        scores = [number(v) for v in (s.perplexity, s.f_D, s.f_A, s.f_H, s.L)]
        rows.append((str(r.step), count(m.tokens), duration(m.train_hours), *scores))
    return rows


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
    if isinstance(last.prediction, Prediction) and last.prediction.growth > 1:
        lines.append(expectation(last))
    return "\n".join(lines)


def expectation(record: Record) -> str:
    """Return the best L that is expected, as a sentence; "" where nothing was forecast."""
    p = record.prediction
    if p is None:
        return ""
    if isinstance(p, Unpredictable):
        return f"no forecast of the best L: {p.reason}"
    spent = f"{p.growth:.3g} ({p.growth_low:.3g} to {p.growth_high:.3g}) times"
    return (
        f"expected, if the learning rate goes on as so far: best L {p.best_L:.4f} "
        f"({p.best_L_low:.4f} to {p.best_L_high:.4f}) at {spent} what is spent now"
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
