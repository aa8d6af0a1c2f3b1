"""One factor of the equation: f(x; w, c) = ((c + x)/(c + 1)) ^ (w · (1 + c))."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .measurements import Measurements
from .measures import MEASURES, check_measure
from .safe_numbers import as_number, exp, short

# Constant during a run; everything else that a factor charges for grows.
_OF_THE_MODEL = (
    "trainable_parameters",
    "total_parameters",
    "active_parameters",
    "flops_per_token",
)
# Training time, whose idle share is known.
TRAINING_TIME = ("train_hours", "device_hours", "cost", "capacity_flops")

DEFAULT_WEIGHT = 0.025
"""Weight of each factor in the default formula. Tokens and time together weigh 0.05, the elasticity
of perplexity on the compute-optimal frontier of a model of about 12B parameters (from the law in
Besiroglu et al. 2024, https://arxiv.org/abs/2404.10102)."""


@dataclass(frozen=True)
class Factor:
    """One factor: f(x; w, c) = ((c + x) / (c + 1)) ^ (w · (1 + c)), with x = measure / reference.

    ========= =================================================================================
    x         the measure in units of ``reference``; f(1) = 1, below it f < 1, above it f > 1
    w         ``weight``: d ln f / d ln x at the reference. 0 switches the factor off. What doubling
              x must buy is 1 - f(x)/f(2·x), see :meth:`doubling`: 1 - 2^-w where c = 0, else less
              before the reference and more after it
    c         softness at small x. 0 is the plain power x^w of MnasNet (Tan et al. 2019,
              https://arxiv.org/abs/1807.11626); 1 keeps f from going to 0 with x, or the first
              validation of a run would be its best merely because little was spent
    ========= =================================================================================

    Args:
        measure: name of a measure, for example ``"tokens"``; ``"tokens_to_level"``, the spending
            when a stated perplexity was first reached; or one of your own.
        reference: the amount at which the factor charges nothing, in the measure's unit, > 0.
        weight: w >= 0.
        c: >= 0. Default: 1 for what grows during a run, 0 for what is fixed by the model.
        idle_price: cost of an idle hour relative to a busy one, >= 0; for measures of time. The
            priced time is time · (busy + idle_price · (1 - busy)), where busy is the share of time
            in which the device was busy. 1: a rented device costs the same idle. 0: idle time is
            given back.
        level: the T of a measure ``..._to_level``, > 0. There is no L before T reaches it: use
            ``EarlyStopping(strict=False)``, and let ModelCheckpoint monitor the perplexity.
        own: whether the measure is one of ``LScore(measures={name: function})``.

    Raises:
        ValueError: for an unknown measure, a reference <= 0, a negative weight or c, NaN, infinity,
            an idle price for what is not time, a level where none belongs, or a missing level.

    >>> f = Factor("tokens", reference=1e9, weight=0.1)
    >>> f.f(1.0), round(f.f(2.0), 4)
    (1.0, 1.0845)
    """

    measure: str
    reference: float
    weight: float = DEFAULT_WEIGHT
    c: float | None = None
    idle_price: float = 1.0
    level: float | None = None
    own: bool = False

    def __post_init__(self) -> None:
        self._check_measure()
        object.__setattr__(self, "measure", str(self.measure))  # numpy's strings are strings too
        if self.c is None:
            object.__setattr__(self, "c", 0.0 if self.measure in _OF_THE_MODEL else 1.0)
        bounds = {"reference": "> 0", "weight": ">= 0", "c": ">= 0", "idle_price": ">= 0"}
        for name, least in (bounds if self.level is None else {**bounds, "level": "> 0"}).items():
            value = as_number(getattr(self, name))
            if value is None or not 0 <= value < math.inf or (least == "> 0" and value == 0):
                raise ValueError(
                    f"Factor.{name} of {self.measure!r}: expected a finite number {least}, "
                    f"got {short(getattr(self, name))}."
                )
            object.__setattr__(self, name, value)
        if self.idle_price != 1 and self.measure not in TRAINING_TIME:
            raise ValueError(
                "Factor.idle_price: expected a measure of training time "
                f"({', '.join(TRAINING_TIME)}), got {self.measure!r}."
            )

    def _check_measure(self) -> None:
        if not isinstance(self.own, bool):
            raise ValueError(f"Factor.own: expected True or False, got {short(self.own)}.")
        name = self.measure
        if self.own and not (
            isinstance(name, str) and name.isidentifier() and name not in MEASURES
        ):
            raise ValueError(
                "Factor.measure: expected a name of letters, digits and _ that no other measure "
                f"has for one of your own, got {short(name)}."
            )
        try:
            if not self.own:
                check_measure(self.measure)
        except ValueError as error:
            raise ValueError(
                f"Factor.measure: {error} For one of your own, say own=True and give "
                "LScore(measures={name: function})."
            ) from None
        if (self.level is not None) != (not self.own and self.measure.endswith("_to_level")):
            raise ValueError(
                "Factor.level: expected the perplexity to be reached for a measure ..._to_level, "
                f"and None for any other, got {short(self.level)} for {self.measure!r}."
            )

    def ln_f(self, x: float) -> float:
        """Return ln f at x = measure / reference >= 0; -inf where f is 0."""
        assert self.c is not None
        if self.weight == 0:
            return 0.0
        if self.c + x == 0:
            return -math.inf
        step = (x - 1) / (self.c + 1)
        # log1p is exact near the reference and for large c, log where x is tiny.
        ln = math.log1p(step) if step > -0.5 else math.log((self.c + x) / (self.c + 1))
        return self.weight * (1 + self.c) * ln

    def doubling(self, x: float) -> float:
        """Return ln f(2·x) - ln f(x), by which ln T must fall when x doubles or L rises.

        >>> charges = Factor("tokens", reference=1e9, weight=0.05)
        >>> [f"{-math.expm1(-charges.doubling(x)):.2%}" for x in (0.1, 0.5, 1.0)]
        ['0.87%', '2.84%', '3.97%']
        """
        return self.ln_f(2 * x) - self.ln_f(x) if x > 0 else 0.0

    def f(self, x: float) -> float:
        """Return f at x = measure / reference >= 0."""
        return exp(self.ln_f(x))

    def __call__(self, measurements: Measurements) -> float | None:
        """Return f of what was measured; None if the measure is missing."""
        ln = self.ln(measurements)
        return None if ln is None else exp(ln)

    def ln(self, measurements: Measurements) -> float | None:
        """Return ln f of what was measured; None if the measure is missing."""
        if self.weight == 0:
            return 0.0
        priced = self.priced(measurements)
        return None if priced is None else self.ln_f(priced / self.reference)

    def priced(self, measurements: Measurements) -> float | None:
        """Return the amount charged for, in the measure's unit: idle time at its price."""
        if self.own:
            return measurements.own.get(self.measure)
        value = measurements.get(self.measure)
        if self.level not in (None, measurements.level):
            return None
        if self.idle_price == 1:
            return value
        busy = measurements.get("busy_fraction")
        if value is None or busy is None:
            return None
        return value * (busy + self.idle_price * (1 - busy))

    def missing(self, measurements: Measurements) -> list[str]:
        """Return "measure: reason" for each measure that f needs and that is missing."""
        if self.priced(measurements) is not None:
            return []
        if self.own:
            return [f"{self.measure}: {measurements.why_missing(self.measure)}"]
        if self.level not in (None, measurements.level):
            return [f"{self.measure}: unavailable: not measured for a level of {self.level:g}"]
        return [
            f"{name}: {measurements.why_missing(name)}"
            for name in self.measures
            if measurements.get(name) is None
        ]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures that f needs; none if the weight is 0."""
        if self.weight == 0:
            return ()
        return (self.measure,) if self.idle_price == 1 else (self.measure, "busy_fraction")
