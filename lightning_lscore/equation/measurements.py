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
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

from .safe_numbers import as_number, exp, short

Together: TypeAlias = Literal["sum", "max", "mean", "ratio", "same"]
"""How the devices and processes of a run come together in one measure: their sum; the largest; the
mean weighted by time; a ratio of sums over all of them; or a value that all of them share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """What is known of one measure, whatever its value: the row of a table."""

    unit: str
    meaning: str
    together: Together
    shown: str = ",.4g"
    """Format of its value for a reader, see Python's format specification."""
    logged: bool = True
    """Whether loggers get it, under ``lscore/``; the record holds every measure."""
    grows: bool = False
    """Whether it grows while a run goes on: what is spent."""
    may_be_infinite: bool = False


def _measure(unit: str, meaning: str, together: Together = "ratio", **more: Any) -> Any:
    row = Measure(unit=unit, meaning=meaning, together=together, **more)
    return field(default=None, metadata={"measure": row})


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
        shown=".4f",
        logged=False,
        may_be_infinite=True,
    )
    nll: float | None = _measure(
        "nats/token",
        "mean negative log-likelihood of a held-out token",
        shown=".4f",
        logged=False,
        may_be_infinite=True,
    )
    validation_tokens: int | None = _measure("tokens", "held-out tokens that were counted", "sum")
    bits_per_byte: float | None = _measure(
        "bits/byte", "held-out NLL per byte of text", shown=".4f"
    )
    nominal_perplexity: float | None = _measure(
        "",
        "perplexity of a nominal token of 4 bytes, exp(4 x NLL per byte): compares tokenizers",
        shown=".4f",
        may_be_infinite=True,
    )

    tokens: int | None = _measure(
        "tokens", "training tokens that the model was fed", "sum", grows=True
    )
    samples: int | None = _measure(
        "samples", "training sequences that the model was fed", "sum", logged=False, grows=True
    )
    steps: int | None = _measure("steps", "optimiser steps", "same", logged=False, grows=True)
    epochs: float | None = _measure(
        "epochs", "passes over the training set", "same", logged=False, grows=True
    )
    model_flops: float | None = _measure(
        "FLOP", "arithmetic that the model needs for its tokens", "sum", grows=True
    )

    trainable_parameters: int | None = _measure("parameters", "parameters with a gradient", "same")
    total_parameters: int | None = _measure("parameters", "all parameters, tied ones once", "same")
    flops_per_token: float | None = _measure(
        "FLOP/token", "arithmetic of one training token", logged=False
    )

    train_hours: float | None = _measure(
        "h", "wall time of training, without validation", "max", grows=True
    )
    wall_hours: float | None = _measure(
        "h", "wall time of training and validation together", "max", logged=False, grows=True
    )
    device_hours: float | None = _measure(
        "h", "training time, summed over the devices", "sum", grows=True
    )
    cost: float | None = _measure(
        "money",
        "device_hours times the price of each, in the currency of the price",
        "sum",
        grows=True,
    )
    capacity_flops: float | None = _measure(
        "FLOP",
        "what the occupied devices could have computed at their dense peak",
        "sum",
        grows=True,
    )
    tokens_per_second: float | None = _measure("tokens/s", "training tokens a second of training")
    mfu: float | None = _measure(
        "", "model FLOPs utilisation: model_flops / capacity_flops", shown=".1%"
    )
    busy_fraction: float | None = _measure(
        "",
        "share of the training time in which the device (GPU, or the CPU's cores) was busy",
        "mean",
        shown=".1%",
    )
    sm_clock_mhz: float | None = _measure(
        "MHz",
        "mean clock of the GPU's compute units over the training time, idle moments included",
        "mean",
        shown=".0f",
    )
    throttled_fraction: float | None = _measure(
        "",
        "share of the training time in which power, heat or a fault held the GPU's clocks down",
        "mean",
        shown=".1%",
    )
    throttled_by_power_fraction: float | None = _measure(
        "",
        "the part of it in which power was a cause, alone or beside others",
        "mean",
        shown=".1%",
        logged=False,
    )
    throttled_by_heat_fraction: float | None = _measure(
        "",
        "the part of it in which heat was a cause, alone or beside others",
        "mean",
        shown=".1%",
        logged=False,
    )
    memory_mean_gib: float | None = _measure(
        "GiB",
        "mean memory in use on one device over the training time",
        "mean",
        shown=".2f",
        logged=False,
    )
    memory_peak_gib: float | None = _measure(
        "GiB", "largest memory in use on one device", "max", shown=".2f"
    )
    power_watts: float | None = _measure(
        "W", "mean power of the devices together, in training", "sum", shown=".1f"
    )
    energy_kwh: float | None = _measure(
        "kWh", "energy of the devices, in training", "sum", shown=".4g", grows=True
    )
    emissions_kg: float | None = _measure(
        "kg", "CO2-equivalent of energy_kwh, at the carbon intensity given", "sum", grows=True
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

    def spending(self) -> dict[str, float]:
        """The counts of spending that have a value, by name."""
        return {name: v for name in GROWING if (v := getattr(self, name)) is not None}

    def why_missing(self, measure: str) -> str:
        """Why a measure has no value, in words."""
        return self.provenance.get(measure, "unavailable: nobody measured it")


NOMINAL_BYTES = 4
"""Bytes of a nominal token: about what a token of English text has under common tokenizers."""

_FIELDS: dict[str, Measure] = {
    f.name: f.metadata["measure"] for f in fields(Measurements) if "measure" in f.metadata
}

GROWING = tuple(name for name, row in _FIELDS.items() if row.grows)
"""The measures that count spending."""

_TO_LEVEL = {f"{name}_to_level": name for name in GROWING}

MEASURES: dict[str, Measure] = _FIELDS | {
    to_level: replace(
        _FIELDS[name], meaning=f"{name} when the level of T was first reached", grows=False
    )
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
    row = MEASURES.get(name)
    number = as_number(value)
    if number is None:
        raise ValueError(
            f"Measurements.{name}: expected a number or None, got {short(value)}. "
            "Leave out what was not measured."
        )
    finite = math.isfinite(number) or (row is not None and row.may_be_infinite)
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
