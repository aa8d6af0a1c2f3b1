"""Compute-equivalent gain of runs over finished ones, in a sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..curve.calibration import Calibration
from ..record.reaching import lowest
from ..record.record import Record


def gains(
    runs: Mapping[str, Sequence[Record]], calibration: Calibration, T: str = "perplexity"
) -> str:
    """State how much compute the law of finished runs needs for each run's lowest perplexity.

    Args:
        runs: the validations of each by its name, evaluated on the set of the finished runs.
        calibration: on these, with a law.
        T: in which they compare.
    """
    lines = [
        f"Compute-equivalent gain over the law of {calibration.runs} finished runs, which must "
        "have been evaluated on the same held-out set:"
    ]
    if calibration.unknown or calibration.law is None:
        return "\n".join([*lines, f"  refused. {' '.join(calibration.unknown)}"])
    for name, records in runs.items():
        low = lowest(records, T)
        spent = None if low is None else low.record.measurements.model_flops
        if low is None or not spent:
            why = records[-1].measurements.why_missing("model_flops")
            lines.append(f"  {name}: not known, {'no finite perplexity' if low is None else why}.")
            continue
        try:
            gain = calibration.law.gain(low.ln_T, spent)
        except ValueError as error:
            lines.append(f"  {name}: refused, {error}")
            continue
        lines.append(
            f"  {name}: {gain.factor:.3g} ({gain.low:.3g} to {gain.high:.3g}, 90 %): the law needs "
            f"{gain.factor * spent:.3g} FLOP for its perplexity, the run spent {spent:.3g}."
        )
    return "\n".join(lines)
