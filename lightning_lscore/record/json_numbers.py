"""Numbers out of JSON, where NaN and infinities are strings, checked as far as a record needs."""

from __future__ import annotations

import math
from typing import Any

from ..equation.safe_numbers import as_number, short


def float_of(value: Any) -> Any:
    """Return the float of a string that stands for NaN or an infinity, any other value as it is."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def plain_float(value: Any) -> float:
    """Return a number as a float.

    Raises:
        ValueError: if it is none.
    """
    number = as_number(float_of(value))
    if number is None:
        raise ValueError(f"expected a number, got {short(value)}")
    return number


def number_or_none(value: Any, name: str) -> float | None:
    """Return a number as a float, or None for None.

    Raises:
        ValueError: if it is neither.
    """
    if value is None or type(value) is float:
        return value
    number = as_number(float_of(value))
    if number is None:
        raise ValueError(f"{name}: expected a number or null, got {short(value)}")
    return number


def hours(value: Any) -> float:
    """Return the hours that a run lost.

    Raises:
        ValueError: if they are no finite number >= 0.
    """
    number = as_number(value)
    if number is None or not 0 <= number < math.inf:
        raise ValueError(f"lost_device_hours: expected a number >= 0, got {short(value)}")
    return number
