"""The spending that it took to first reach a stated perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .measurements import Measurements


def first_reached(
    before: Mapping[str, float], now: Mapping[str, float], ln_level: float
) -> dict[str, float]:
    """Return the spending when ln T fell to ``ln_level``, by measure; empty if it has not yet.

    Between two validations ln T is taken as linear in the spending. Real curves bend below the
    line, so the result is too high, by less than the distance of two validations. At a run's first
    validation it is the spending so far, an upper bound.

    Args:
        before: ``ln_T`` and the spending at the validation before, empty if there was none.
        now: the same at this one.
        ln_level: ln of the perplexity to be reached.

    >>> first_reached({"ln_T": 4.0, "tokens": 100}, {"ln_T": 2.0, "tokens": 200}, ln_level=3.5)
    {'tokens': 125.0}
    """
    if now["ln_T"] > ln_level:
        return {}
    spent = {name: float(value) for name, value in now.items() if name != "ln_T"}
    if not before or before["ln_T"] <= ln_level:
        return spent
    share = (before["ln_T"] - ln_level) / (before["ln_T"] - now["ln_T"])
    return {
        name: before[name] + share * (value - before[name])
        for name, value in spent.items()
        if name in before
    }


def with_level(
    measurements: Measurements, level: float, reached: Mapping[str, float], how: str
) -> Measurements:
    """Return the measurements with those ``..._to_level``, or with why these are missing.

    Args:
        measurements: of one validation.
        level: the perplexity to be reached.
        reached: see :func:`first_reached`.
        how: provenance of these, once the level is reached.
    """
    if not reached:
        how = f"unavailable: a perplexity of {level:g} is not reached yet"
    names = [f"{name}_to_level" for name in measurements.spending()]
    provenance = {**measurements.provenance, **dict.fromkeys(names, how)}
    return replace(measurements, level=level, to_level=reached, provenance=provenance)
