"""What a run has to say, in a sentence: what was bought for what, and whether it was worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..curve.noise import scatter_of_curve
from ..record.comparable import best_record, comparable_with_last
from ..record.record import Record
from .cells import count, duration

_WHAT = {"tokens": "data", "device_hours": "machine time"}


def headline(records: Sequence[Record]) -> str:
    """Return the sentence about a run, from its validations that compare with the last."""
    records = comparable_with_last(records)
    best, last = best_record(records), records[-1]
    if best is None or best.L is None or last.L is None:
        return f"No L was scored: {'; '.join(last.score.missing) or 'every L is NaN'}."
    if best is last:
        m, T = last.measurements, last.score.perplexity or math.nan
        spent = f"{count(m.tokens)} tokens and {duration(m.device_hours)} of device time"
        end = (
            "L was still falling"
            if len(records) > 1
            else "one validation cannot tell of what use more is"
        )
        return f"{spent} bought a perplexity of {T:.4g}; {end}."
    more = " and ".join(
        f"{percent(now / then - 1)} more {what}"
        for name, what in _WHAT.items()
        if (then := best.measurements.get(name)) and (now := last.measurements.get(name))
    )
    spent = f"{more or 'more spending'} after the lowest L"
    spent = spent[0].upper() + spent[1:]
    T = (last.score.perplexity or math.nan) / (best.score.perplexity or math.nan) - 1
    if not T < 0:
        return f"{spent} bought nothing: perplexity is {percent(T)} higher.{_ended(last)}"
    worth = "about what" if is_plateau(records) else "less than"
    return f"{spent} bought {percent(-T)} lower perplexity: {worth} it was to buy.{_ended(last)}"


def _ended(last: Record) -> str:
    """Say how far into its plan the run came, where it did not come to its end."""
    share = 1.0 if not last.planned else last.batch / last.planned
    return f" It ended at {100 * share:.0f} % of its plan." if share < 0.98 else ""


def is_plateau(records: Sequence[Record]) -> bool:
    """Whether the last L lies above the lowest by no more than the noise of two validations."""
    best, last = best_record(records), records[-1]
    if best is None or not best.L or not last.L:
        return False
    noise = noise_of(records)
    return noise is not None and math.log(last.L / best.L) <= 2 * math.sqrt(2) * noise


def noise_of(records: Sequence[Record]) -> float | None:
    """Return the scatter of ln T over the newest validations, in nats; None where unknown."""
    nll = [r.measurements.nll for r in records]
    return scatter_of_curve([math.nan if y is None else y for y in nll][-20:])


def percent(share: float) -> str:
    """Return a share for a reader."""
    return f"{100 * share:.{0 if share >= 0.095 else 1}f} %"
