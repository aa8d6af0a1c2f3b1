"""The user's own measures: functions by name, called at each validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..equation.formula import Formula
from ..equation.measures import MEASURES
from ..equation.safe_numbers import as_number, short
from .extras import Extras

OwnMeasure = Callable[..., float | None]
"""A function that returns a number >= 0, or None where it has no value."""


def check_measures(functions: Mapping[str, OwnMeasure], formula: Formula | None) -> None:
    """Check names and functions, and that the formula's own measures are among them.

    Raises:
        ValueError: for a bad name, for what is no function, and for one that is missing.
    """
    for name, function in functions.items():
        if not (isinstance(name, str) and name.isidentifier() and name not in MEASURES):
            raise ValueError(
                "measures: expected a name of letters, digits and _ that no other measure has, "
                f"got {name!r}."
            )
        if not callable(function):
            raise ValueError(
                f"measures: expected a function that returns a number for {name!r}, "
                f"got {short(function)}."
            )
    for name in formula.own_measures if formula is not None else ():
        if name not in functions:
            raise ValueError(
                f"measures: expected a function for {name!r}, which the formula charges for, got "
                f"those of {list(functions)}. Say LScore(measures={{{name!r}: function}})."
            )


def values_of(
    functions: Mapping[str, Callable[[], float | None]], extras: Extras
) -> dict[str, float]:
    """Return the value of each at this moment; NaN for None, and for one that raises.

    Raises:
        ValueError: if one returns what is no such number.
    """
    return {
        name: _number_from(name, extras.run(f"the measure {name!r}", function))
        for name, function in functions.items()
    }


def _number_from(name: str, value: Any) -> float:
    number = math.nan if value is None else as_number(value)
    if number is None or number < 0 or math.isinf(number):
        raise ValueError(
            f"measures: expected the function of {name!r} to return a finite number >= 0, or None "
            f"where it has no value, got {short(value)}."
        )
    return number
