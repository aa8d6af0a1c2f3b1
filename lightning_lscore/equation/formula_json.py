"""A formula's factors to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .factor import AnyFactor, Factor
from .safe_numbers import short


def factor_to_json(factor: AnyFactor) -> Any:
    if isinstance(factor, Factor):
        values = asdict(factor)
        seldom = {"level": None, "own": False}
        return {k: v for k, v in values.items() if k not in seldom or v != seldom[k]}
    if isinstance(factor, float):
        return factor
    name = getattr(factor, "__qualname__", type(factor).__qualname__)
    return {"function": f"{getattr(factor, '__module__', '?')}.{name}"}


def factor_from_json(letter: str, data: Any) -> Any:
    if isinstance(data, Mapping) and set(data) == {"function"}:
        raise ValueError(
            f"{letter} of this formula is the function {short(data['function'])}, which no file "
            "can hold. Build the formula in Python, where the function is."
        )
    if not isinstance(data, Mapping):
        return data  # a constant: Formula checks it
    if not {"measure", "reference", "weight"} <= set(data) <= {*Factor.__dataclass_fields__}:
        raise ValueError(
            f"{letter} of a formula: expected measure, reference, weight and c, got {short(data)}."
        )
    return Factor(**data)
