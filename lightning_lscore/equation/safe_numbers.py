"""Numbers whatever comes: read from any value, shown in an error, exponentiated past a float."""

from __future__ import annotations

import math
import numbers
from typing import Any


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
