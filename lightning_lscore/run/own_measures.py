"""The user's own measures: functions of the Trainer and the module, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..equation.formula import Formula
from ..equation.measures import MEASURES
from ..equation.safe_numbers import as_number

OwnMeasure = Callable[[Any, Any], float | None]
"""(trainer, module) -> a number >= 0, or None where it has no value."""


def check_measures(functions: Mapping[str, OwnMeasure], formula: Formula | None) -> None:
    """Raises ValueError for a bad name, for what is no function, and for one that is missing."""
    for name, function in functions.items():
        if not (isinstance(name, str) and name.isidentifier() and name not in MEASURES):
            raise ValueError(
                "measures: expected a name of letters, digits and _ that no other measure has, "
                f"got {name!r}."
            )
        if not callable(function):
            raise ValueError(
                f"measures: expected a function (trainer, module) -> number for {name!r}, "
                f"got {function!r}."
            )
    for name in formula.own_measures if formula is not None else ():
        if name not in functions:
            raise ValueError(
                f"measures: expected a function for {name!r}, which the formula charges for, got "
                f"those of {list(functions)}. Say LScore(measures={{{name!r}: function}})."
            )


def ask(name: str, function: OwnMeasure, trainer: Any, module: Any) -> float:
    """What it says at this moment; NaN for None.

    Raises:
        ValueError: if that is not such a number.
    """
    value = function(trainer, module)
    number = math.nan if value is None else as_number(value)
    if number is None or number < 0 or math.isinf(number):
        raise ValueError(
            f"measures: expected the function of {name!r} to return a finite number >= 0, or None "
            f"where it has no value, got {value!r}."
        )
    return number
