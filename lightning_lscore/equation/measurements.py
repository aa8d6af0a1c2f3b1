"""What one validation measured: one frozen object that every later stage reads.

``None`` means "not measured" and never becomes 0; ``provenance`` states for each measure how it was
obtained or why it is missing.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .measures import (
    GROWING,
    MEASURES,
    NOMINAL_BYTES,
    OF_A_VALIDATION,
    SIGNED,
    TO_LEVEL,
    check_measure,
)
from .safe_numbers import as_number, exp, short


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """What one validation measured. Every field is optional; ``MEASURES`` has units and meanings.

    ``perplexity`` and ``nll`` (ln perplexity) determine each other, so either is enough; both are
    kept because exp(nll) overflows beyond 709 nats a token. They and ``nominal_perplexity`` alone
    may be NaN or infinite.

    Counts of spending (tokens, steps, hours, FLOP, energy) cover the training since the run's
    first step, over all ranks and across resumes, without validation.

    Each count of spending also has a measure ``..._to_level``, for example ``tokens_to_level``: the
    spending when T first fell to ``level``.

    Raises:
        ValueError: if a value is negative, or not finite where it must be.

    >>> round(Measurements(nll=3.0).perplexity, 3)
    20.086
    """

    perplexity: float | None = None
    nll: float | None = None
    validation_tokens: int | None = None
    bits_per_byte: float | None = None
    nominal_perplexity: float | None = None

    tokens: int | None = None
    samples: int | None = None
    steps: int | None = None
    epochs: float | None = None
    model_flops: float | None = None

    trainable_parameters: int | None = None
    total_parameters: int | None = None
    active_parameters: int | None = None
    flops_per_token: float | None = None

    train_hours: float | None = None
    wall_hours: float | None = None
    device_hours: float | None = None
    cost: float | None = None
    capacity_flops: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    busy_fraction: float | None = None
    sm_clock_mhz: float | None = None
    throttled_fraction: float | None = None
    throttled_by_power_fraction: float | None = None
    throttled_by_heat_fraction: float | None = None
    memory_mean_gib: float | None = None
    memory_peak_gib: float | None = None
    power_watts: float | None = None
    energy_kwh: float | None = None
    emissions_kg: float | None = None
    elasticity: float | None = None
    elasticity_needed: float | None = None

    level: float | None = None
    """The T that the measures ``..._to_level`` refer to."""
    to_level: Mapping[str, float] = field(default_factory=dict)
    """Spending when T first fell to ``level``, by measure; empty before."""
    own: Mapping[str, float] = field(default_factory=dict)
    """The user's own measures by name."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Measure -> "measured: how", "estimated: how" or "unavailable: why"."""

    def __post_init__(self) -> None:
        for name in OF_A_VALIDATION:
            value = getattr(self, name)
            if value is not None and (checked := _checked(name, value)) is not value:
                object.__setattr__(self, name, checked)
        for name in ("to_level", "own"):
            values = {str(k): _checked(k, v) for k, v in getattr(self, name).items()}
            object.__setattr__(self, name, values)
        self._derive()

    def _derive(self) -> None:
        """Fill in what follows from the other measures."""
        if self.perplexity is None and self.nll is not None:
            object.__setattr__(self, "perplexity", exp(self.nll))
        elif self.nll is None and self.perplexity is not None:
            nll = -math.inf if self.perplexity == 0 else math.log(self.perplexity)
            object.__setattr__(self, "nll", nll)
        if self.nominal_perplexity is None and self.bits_per_byte is not None:
            nominal = exp(NOMINAL_BYTES * math.log(2) * self.bits_per_byte)
            object.__setattr__(self, "nominal_perplexity", nominal)

    def get(self, measure: str) -> float | None:
        """Return the value of a measure, None if it was not measured; not for the user's own.

        Raises:
            ValueError: if no measure has this name.
        """
        check_measure(measure)
        if measure in TO_LEVEL:
            return self.to_level.get(TO_LEVEL[measure])
        value: float | None = getattr(self, measure)
        return value

    def measured(self) -> dict[str, float]:
        """Return the measures that have a value, by name, except the user's own."""
        return {name: v for name in MEASURES if (v := self.get(name)) is not None}

    @classmethod
    def of(cls, measured: Mapping[str, Any], **others: Any) -> Measurements:
        """Build from what :meth:`measured` returned; ``others`` are the remaining arguments.

        Names that are no measure, as from a later version, are ignored.
        """
        values = {name: v for name, v in measured.items() if name in OF_A_VALIDATION}
        to_level = {TO_LEVEL[name]: v for name, v in measured.items() if name in TO_LEVEL}
        return cls(**values, to_level=to_level, **others)

    @classmethod
    def builder(cls, names: Sequence[str]) -> Callable[[Sequence[Any]], Measurements]:
        """Return a function that builds from values of these fields; the others are None.

        It checks nothing, and takes a fraction of the constructor's time: for values that were
        checked before, which are plain finite numbers >= 0 those of ``SIGNED`` may be
        negative.
        """
        others = [f.name for f in fields(cls) if f.name not in names]
        setters = [getattr(cls, name).__set__ for name in (*names, *others)]
        nothing = [None] * len(others)

        def build(values: Sequence[Any]) -> Measurements:
            made = object.__new__(cls)
            for set_value, value in zip(setters, [*values, *nothing], strict=True):
                set_value(made, value)
            made._derive()
            return made

        return build

    def spending(self) -> dict[str, float]:
        """Return the counts of spending that have a value, by name."""
        return {name: v for name in GROWING if (v := getattr(self, name)) is not None}

    def why_missing(self, measure: str) -> str:
        """Return why a measure has no value, in words."""
        return self.provenance.get(measure, "unavailable: not measured")


def _checked(name: str, value: Any) -> float:
    """Return the value as a number that JSON can hold.

    Raises:
        ValueError: if it is not a number, or negative, or not finite where it must be.
    """
    # Fast path: a long file has millions of these. The exact types exclude bool and numpy's.
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
    if not finite or (number < 0 and name not in SIGNED):
        raise ValueError(
            f"Measurements.{name}: expected a finite number >= 0, got {value!r}. "
            "Leave out what was not measured."
        )
    # numpy's, for example, which JSON and checkpoints cannot hold
    return int(value) if isinstance(value, numbers.Integral) else number
