"""A finished run as a formula's reference: L of another run then compares with that run's spending.

Records belong to a room above this one. ``Baseline`` states what a formula needs of a record, and
the room that reads record files registers its reader here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from .any_factor import AnyFactor
from .factor import Factor
from .measurements import Measurements


class Baseline(Protocol):
    """One validation of a finished run. ``Record`` is one."""

    @property
    def run(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def measurements(self) -> Measurements: ...
    @property
    def formula(self) -> Mapping[str, Any]: ...


RunReader: TypeAlias = Callable[[str | os.PathLike[str]], Sequence[Baseline]]
"""Reads the validations of a run from a path, oldest first, at least one."""

_readers: list[RunReader] = []


def register_reader(read_run: RunReader) -> None:
    """Let :func:`open_baseline` read paths with ``read_run``; the newest registered counts."""
    _readers.append(read_run)


def open_baseline(run: Baseline | str | os.PathLike[str]) -> Baseline:
    """Return ``run`` itself, or the last validation in the record file at that path.

    Raises:
        RuntimeError: if ``run`` is a path and no reader is registered.
    """
    if not isinstance(run, (str, os.PathLike)):
        return run
    if not _readers:
        raise RuntimeError(
            f"expected a registered reader of record files, got the path {os.fspath(run)!r} and "
            "none; import lightning_lscore, which registers one."
        )
    return _readers[-1](run)[-1]


def charge_nothing_at(factor: AnyFactor, measurements: Measurements) -> AnyFactor:
    """Return the factor with what was measured as its reference; a constant stays as it is.

    Raises:
        ValueError: if the measure of the factor is missing or 0.
    """
    if not isinstance(factor, Factor) or factor.weight == 0:
        return factor
    spent = factor.priced(measurements)
    if not spent:
        why = measurements.why_missing(factor.measure)
        raise ValueError(
            f"expected a baseline with a value of {factor.measure!r}, got {spent}: {why}"
        )
    return replace(factor, reference=spent)
