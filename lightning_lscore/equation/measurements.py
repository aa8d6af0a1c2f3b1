"""What was measured at one validation: one frozen record that every later stage reads.

``None`` means "not measured" and is never replaced by 0; ``provenance`` says, for each measure,
how it was obtained or why it is missing.
"""

from __future__ import annotations

import difflib
import math
import numbers
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


def _measure(
    unit: str,
    meaning: str,
    *,
    logged: bool = True,
    grows: bool = False,
    may_be_infinite: bool = False,
) -> Any:
    metadata = {
        "unit": unit,
        "meaning": meaning,
        "logged": logged,  # under "lscore/"; the record holds all of them
        "grows": grows,  # while a run goes on: what is spent
        "may_be_infinite": may_be_infinite,
    }
    return field(default=None, metadata=metadata)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """What one validation measured. Every field is optional; units are in the names.

    ``perplexity`` and ``nll`` (ln perplexity) determine each other, so either is enough; both are
    kept because exp(nll) overflows beyond 709 nats a token. They alone may be NaN or infinite.

    Counts of spending (tokens, steps, hours, FLOP, energy) cover the training since the run's
    first step, over all ranks and across resumes, without validation.

    Beside its fields it has a measure ``<spending>_to_level`` for each count of spending, such as
    ``tokens_to_level``: how much had been spent when T first fell to ``level``.

    Raises:
        ValueError: if a value is negative, or not finite where it must be.

    >>> round(Measurements(nll=3.0).perplexity, 3)
    20.086
    """

    perplexity: float | None = _measure(
        "",
        "held-out perplexity, exp(sum of NLL / counted tokens)",
        logged=False,
        may_be_infinite=True,
    )
    nll: float | None = _measure(
        "nats/token",
        "mean negative log-likelihood of a held-out token",
        logged=False,
        may_be_infinite=True,
    )
    validation_tokens: int | None = _measure("tokens", "held-out tokens that were counted")
    bits_per_byte: float | None = _measure("bits/byte", "held-out NLL per byte of text")
    nominal_perplexity: float | None = _measure(
        "",
        "perplexity of a nominal token of 4 bytes, exp(4 x NLL per byte): compares tokenizers",
        may_be_infinite=True,
    )

    tokens: int | None = _measure("tokens", "training tokens that the model was fed", grows=True)
    samples: int | None = _measure(
        "samples", "training sequences that the model was fed", logged=False, grows=True
    )
    steps: int | None = _measure("steps", "optimiser steps", logged=False, grows=True)
    epochs: float | None = _measure(
        "epochs", "passes over the training set", logged=False, grows=True
    )
    model_flops: float | None = _measure(
        "FLOP", "arithmetic that the model needs for its tokens", grows=True
    )

    trainable_parameters: int | None = _measure("parameters", "parameters with a gradient")
    total_parameters: int | None = _measure("parameters", "all parameters, tied ones once")
    flops_per_token: float | None = _measure(
        "FLOP/token", "arithmetic of one training token", logged=False
    )

    train_hours: float | None = _measure(
        "h", "wall time of training, without validation", grows=True
    )
    wall_hours: float | None = _measure(
        "h", "wall time of training and validation together", logged=False, grows=True
    )
    device_hours: float | None = _measure("h", "training time, summed over the devices", grows=True)
    cost: float | None = _measure(
        "money", "device_hours times the price of each, in the currency of the price", grows=True
    )
    capacity_flops: float | None = _measure(
        "FLOP", "what the occupied devices could have computed at their dense peak", grows=True
    )
    tokens_per_second: float | None = _measure("tokens/s", "training tokens a second of training")
    mfu: float | None = _measure("", "model FLOPs utilisation: model_flops / capacity_flops")
    gpu_busy_fraction: float | None = _measure(
        "", "share of the training time in which the device (GPU, or the CPU's cores) was busy"
    )
    gpu_sm_clock_mhz: float | None = _measure(
        "MHz", "mean clock of the GPU's compute units over the training time, idle moments included"
    )
    gpu_throttled_fraction: float | None = _measure(
        "", "share of the training time in which power, heat or a fault held the GPU's clocks down"
    )
    gpu_throttled_by_power_fraction: float | None = _measure(
        "", "the part of it in which power was a cause, alone or beside others", logged=False
    )
    gpu_throttled_by_heat_fraction: float | None = _measure(
        "", "the part of it in which heat was a cause, alone or beside others", logged=False
    )
    gpu_memory_mean_gib: float | None = _measure(
        "GiB", "mean memory in use on one device over the training time", logged=False
    )
    gpu_memory_peak_gib: float | None = _measure("GiB", "largest memory in use on one device")
    power_watts: float | None = _measure("W", "mean power of the devices together, in training")
    energy_kwh: float | None = _measure("kWh", "energy of the devices, in training", grows=True)
    emissions_kg: float | None = _measure(
        "kg", "CO2-equivalent of energy_kwh, at the carbon intensity given", grows=True
    )
    elasticity: float | None = _measure(
        "", "d ln T / d ln spent since the last validation: what 1 % more spending bought, in %"
    )

    level: float | None = None
    """The T that the measures ``..._to_level`` refer to."""
    to_level: Mapping[str, float] = field(default_factory=dict)
    """What had been spent when T first fell to ``level``, by measure; empty before."""
    own: Mapping[str, float] = field(default_factory=dict)
    """The user's own measures by name."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Measure -> "measured: how", "estimated: how" or "unavailable: why"."""

    def __post_init__(self) -> None:
        for name in _FIELDS:
            value = getattr(self, name)
            if value is not None and (checked := _checked(name, value)) is not value:
                object.__setattr__(self, name, checked)
        for name in ("to_level", "own"):
            values = {str(k): _checked(k, v) for k, v in getattr(self, name).items()}
            object.__setattr__(self, name, values)
        if self.perplexity is None and self.nll is not None:
            object.__setattr__(self, "perplexity", exp(self.nll))
        elif self.nll is None and self.perplexity is not None:
            nll = -math.inf if self.perplexity == 0 else math.log(self.perplexity)
            object.__setattr__(self, "nll", nll)
        if self.nominal_perplexity is None and self.bits_per_byte is not None:
            nominal = exp(NOMINAL_BYTES * math.log(2) * self.bits_per_byte)
            object.__setattr__(self, "nominal_perplexity", nominal)

    def get(self, measure: str) -> float | None:
        """The value of a measure by name, None when it was not measured; ``own`` apart.

        Raises:
            ValueError: if no measure has this name.
        """
        check_measure(measure)
        if measure in _TO_LEVEL:
            return self.to_level.get(_TO_LEVEL[measure])
        value: float | None = getattr(self, measure)
        return value

    def measured(self) -> dict[str, float]:
        """The measures that have a value, by name; ``own`` apart."""
        return {name: v for name in MEASURES if (v := self.get(name)) is not None}

    @classmethod
    def of(cls, measured: Mapping[str, Any], **others: Any) -> Measurements:
        """The inverse of :meth:`measured`; ``others`` are the remaining arguments."""
        values = {name: v for name, v in measured.items() if name in _FIELDS}
        to_level = {_TO_LEVEL[name]: v for name, v in measured.items() if name in _TO_LEVEL}
        return cls(**values, to_level=to_level, **others)

    def spent(self) -> dict[str, float]:
        """The counts of spending that have a value, by name."""
        return {name: v for name in GROWING if (v := getattr(self, name)) is not None}

    def why_missing(self, measure: str) -> str:
        """Why a measure has no value, in words."""
        return self.provenance.get(measure, "unavailable: nobody measured it")


NOMINAL_BYTES = 4
"""Bytes of a nominal token: about what a token of English text has under common tokenizers."""

_FIELDS: dict[str, Mapping[str, Any]] = {
    f.name: f.metadata for f in fields(Measurements) if "unit" in f.metadata
}

GROWING = tuple(name for name, spec in _FIELDS.items() if spec["grows"])
"""The measures that count spending."""

_TO_LEVEL = {f"{name}_to_level": name for name in GROWING}

MEASURES: dict[str, Mapping[str, Any]] = _FIELDS | {
    to_level: {
        **_FIELDS[name],
        "meaning": f"{name} when the level of T was first reached",
        "grows": False,
    }
    for to_level, name in _TO_LEVEL.items()
}
"""Every measure by name, with its unit and meaning; the user's own apart."""


def check_measure(name: str) -> None:
    """Raises ValueError unless ``name`` is a measure."""
    if not isinstance(name, str) or name not in MEASURES:
        close = difflib.get_close_matches(name, MEASURES, n=1) if isinstance(name, str) else ()
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"expected a measure ({', '.join(_FIELDS)}), got {short(name)}.{hint}")


def _checked(name: str, value: Any) -> float:
    """The value as a number that JSON knows.

    Raises:
        ValueError: if it is none, or negative, or not finite where it must be.
    """
    # So are nearly all, and a long file has millions. Neither bool nor numpy's.
    if type(value) in (float, int) and 0 <= value <= sys.float_info.max:
        return value  # type: ignore[no-any-return]
    spec = MEASURES.get(name, {})
    number = as_number(value)
    if number is None:
        raise ValueError(
            f"Measurements.{name}: expected a number or None, got {short(value)}. "
            "Leave out what was not measured."
        )
    finite = math.isfinite(number) or spec.get("may_be_infinite", False)
    # An NLL is >= 0 up to rounding; an elasticity is negative where spending helps.
    if not finite or (number < 0 and name not in ("nll", "elasticity")):
        raise ValueError(
            f"Measurements.{name}: expected a finite number >= 0, got {value!r}. "
            "Leave out what was not measured."
        )
    if isinstance(value, (int, float)):
        return value
    # numpy's, say, which JSON does not know
    return int(value) if isinstance(value, numbers.Integral) else number


def as_number(value: Any) -> float | None:
    """A real number as a float; None for anything else, bools and what overflows included."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def short(value: Any) -> str:
    """A value for an error message: no more than a line of it, whatever it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or an int of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:200] + " ..."


def exp(nll: float) -> float:
    """e to the power ``nll``; infinite where a float cannot hold it (math.exp raises there)."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
