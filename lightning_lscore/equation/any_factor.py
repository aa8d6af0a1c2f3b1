"""What may stand for D, A or H: a ``Factor``, a constant, or a function of the measurements."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, TypeAlias

from .factor import Factor
from .measurements import Measurements
from .safe_numbers import as_number, positive, short

AnyFactor: TypeAlias = Factor | float | Callable[[Measurements], float]
"""A :class:`Factor`, a constant > 0, or a function of the measurements to a number > 0."""


def checked_factor(letter: str, factor: Any) -> AnyFactor:
    """Return the factor; a constant as a float.

    Raises:
        ValueError: if it is none of the three, or a constant that is not a finite number > 0.
    """
    if isinstance(factor, numbers.Real) or as_number(factor) is not None:
        return positive(factor, f"Formula.{letter}")
    if not callable(factor):
        raise ValueError(
            f"Formula.{letter}: expected a Factor, a number > 0 or a function of the "
            f"measurements, got {short(factor)}."
        )
    return factor  # type: ignore[no-any-return]


def f_of(letter: str, factor: AnyFactor, measurements: Measurements) -> float | None:
    """Return f of what was measured; None if the measure of a ``Factor`` is missing.

    Raises:
        ValueError: if a function returns anything but a finite number > 0.
    """
    if isinstance(factor, Factor):
        return factor(measurements)
    if isinstance(factor, float):
        return factor
    return positive(factor(measurements), f"the function given as Formula.{letter}")


def ln_f_of(letter: str, factor: AnyFactor, measurements: Measurements) -> float | None:
    """Return ln of :func:`f_of`, also where f itself is beyond a float."""
    if isinstance(factor, Factor):
        return factor.ln(measurements)
    f = f_of(letter, factor, measurements)
    return None if f is None else math.log(f)
