"""What can be chosen of a run, checked where it is named."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..equation.formula import Formula
from ..equation.safe_numbers import as_number, positive, short
from ..heldout.token_bytes import CountBytes, make_count_bytes
from ..model.flops import FlopsModel
from .own_measures import OwnMeasure, check_measures


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments that ``LScore`` and ``Tracker`` share; see ``LScore`` for each.

    Raises:
        ValueError: for arguments that make no sense.
        FileNotFoundError: if ``formula`` is a path that does not exist.
    """

    formula: Formula | str | os.PathLike[str] | None = None
    planned_tokens: float | None = None
    directory: str | os.PathLike[str] | None = None
    count_tokens: Callable[[Any], int] | None = None
    count_bytes: Any = None
    measures: Mapping[str, OwnMeasure] = field(default_factory=dict)
    price_per_device_hour: float | None = None
    carbon_intensity: float | None = None
    flops_per_token: float | Literal["count"] | None = None
    ignore_index: int | None = None
    compile: bool = False
    sample_interval: float = 1.0
    prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.formula, (str, os.PathLike)):
            self._keep("formula", Formula.load(self.formula))
        given = self.given_formula
        fits = given is None or isinstance(given, Formula)
        expect(fits, "formula", "a Formula or the path of one", given)
        if self.planned_tokens is not None:
            self._keep("planned_tokens", positive(self.planned_tokens, "planned_tokens"))
        if self.directory is not None:
            fits = isinstance(self.directory, (str, os.PathLike))
            expect(fits, "directory", "the path of a folder, or None", self.directory)
            self._keep("directory", str(os.fspath(self.directory)))
        function = self.count_tokens
        fits = function is None or callable(function)
        expect(fits, "count_tokens", "a function or None", function)
        expect(isinstance(self.prefix, str), "prefix", "a string", self.prefix)
        check_measures(self.measures, given)
        # What is kept is plain: a checkpoint cannot hold numbers of numpy, for instance.
        if self.ignore_index is not None:
            self._keep("ignore_index", integer("ignore_index", self.ignore_index))
        self._keep("compile", switch("compile", self.compile))
        self._keep("prefix", str(self.prefix))
        self._keep("measures", dict(self.measures))
        seconds = as_number(self.sample_interval) or 0.0
        expect(0 < seconds < math.inf, "sample_interval", "seconds > 0", self.sample_interval)
        self._keep("sample_interval", seconds)
        for name in ("price_per_device_hour", "carbon_intensity"):
            rate = getattr(self, name)
            if rate is not None:
                number = as_number(rate)
                fits = number is not None and 0 <= number < math.inf
                expect(fits, name, "a number >= 0", rate)
                self._keep(name, number)
        if self.count_bytes is not None:
            self._keep("count_bytes", make_count_bytes(self.count_bytes))
        if self.flops_per_token not in (None, "count"):
            given_flops = FlopsModel.given(self.flops_per_token)  # type: ignore[arg-type]
            self._keep("flops_per_token", given_flops.per_token)

    def _keep(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def given_formula(self) -> Formula | None:
        """The formula itself, also where its path was given."""
        return self.formula  # type: ignore[return-value]

    @property
    def held_out_index(self) -> int:
        """Label of what does not count where held-out labels are handed over."""
        return -100 if self.ignore_index is None else self.ignore_index

    @property
    def bytes_counter(self) -> CountBytes | None:
        """The function that ``count_bytes`` is or was made into."""
        return self.count_bytes  # type: ignore[no-any-return]


def expect(fits: bool, name: str, expected: str, value: Any) -> None:
    """Raise the ValueError of an argument that does not fit."""
    if not fits:
        raise ValueError(f"{name}: expected {expected}, got {short(value)}.")


def integer(name: str, value: Any, expected: str = "an integer") -> int:
    """Return an integer, of numpy for instance, as an int; raise the ValueError otherwise."""
    expect(hasattr(value, "__index__") and not isinstance(value, bool), name, expected, value)
    return operator.index(value)


def switch(name: str, value: Any, expected: str = "True or False") -> bool:
    """Return True or False, of numpy for instance, as a bool; raise the ValueError otherwise."""
    expect(type(value).__name__ in ("bool", "bool_"), name, expected, value)
    return bool(value)
