"""A formula as JSON: its letters to a dictionary and back, and that dictionary in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .any_factor import AnyFactor
from .factor import Factor
from .safe_numbers import short

SCHEMA = 1


def id_of(data: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits of a formula's JSON, whatever its origin, to tell it by."""
    charged = {name: value for name, value in data.items() if name != "origin"}
    return hashlib.sha256(json.dumps(charged, sort_keys=True).encode()).hexdigest()[:8]


def to_json(T: str, origin: str, factors: Mapping[str, AnyFactor]) -> dict[str, Any]:
    """Return a formula as JSON types; a function becomes its name."""
    seldom = {} if T == "perplexity" else {"T": T}
    written = {letter: _factor_to_json(factor) for letter, factor in factors.items()}
    return {"lscore_formula": SCHEMA, "origin": origin, **seldom, **written}


def from_json(data: Any) -> dict[str, Any]:
    """Return the arguments of a ``Formula``, the inverse of :func:`to_json`.

    Raises:
        ValueError: if ``data`` is no such dictionary, or a factor in it was a function.
    """
    if not isinstance(data, Mapping) or data.get("lscore_formula") != SCHEMA:
        raise ValueError(
            f'expected a formula ({{"lscore_formula": 1, "D": ...}}), got {short(data)}.'
        )
    unknown = set(data) - {"lscore_formula", "origin", "T", "D", "A", "H"}
    if unknown:
        raise ValueError(f"expected T, D, A, H and origin in a formula, got {short(unknown)} too.")
    factors = {x: _factor_from_json(x, data[x]) for x in "DAH" if x in data}
    T = data.get("T", "perplexity")
    return {"T": T, "origin": str(data.get("origin", "given")), **factors}


def write(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write ``data`` to a JSON file, whole or not at all."""
    beside = f"{os.fspath(path)}.{os.getpid()}.tmp"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
        file.write("\n")
    os.replace(beside, path)


def read(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file holds."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _factor_to_json(factor: AnyFactor) -> Any:
    if isinstance(factor, Factor):
        values = asdict(factor)
        seldom = {"level": None, "own": False}
        return {k: v for k, v in values.items() if k not in seldom or v != seldom[k]}
    if isinstance(factor, float):
        return factor
    name = getattr(factor, "__qualname__", type(factor).__qualname__)
    return {"function": f"{getattr(factor, '__module__', '?')}.{name}"}


def _factor_from_json(letter: str, data: Any) -> Any:
    if isinstance(data, Mapping) and set(data) == {"function"}:
        raise ValueError(
            f"{letter} of this formula is the function {short(data['function'])}, which no file "
            "can hold. Build the formula in Python, where the function is defined."
        )
    if not isinstance(data, Mapping):
        return data  # a constant: Formula checks it
    if not {"measure", "reference", "weight"} <= set(data) <= {*Factor.__dataclass_fields__}:
        raise ValueError(
            f"{letter} of a formula: expected measure, reference, weight and c, got {short(data)}."
        )
    return Factor(**data)
