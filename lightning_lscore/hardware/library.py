"""A vendor's library, opened for one device, and the probe that reads through it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from .probe import Device, ProbeLost, Reading, for_every_measure

__all__ = ["OpenedProbe", "Query", "VendorLibrary"]

PLAUSIBLE_MHZ = 10_000
"""No clock is faster: a higher value is an error code."""


Query: TypeAlias = Callable[[Any, Any], "float | frozenset[str] | None"]
"""(library, handle of the device) -> a field of ``Reading``, None if the answer is impossible."""


class VendorLibrary(ABC):
    """A vendor's library, opened for one device in one process.

    Args:
        library: The imported module, whose functions the queries call.
        queries: How to read each field of ``Reading``.
    """

    NAME: ClassVar[str]
    """The library's name in messages."""
    PACKAGE: ClassVar[str]
    """The package that provides the module."""
    FORKED: ClassVar[str] = ""
    """What a fork does to the library, for the error message."""

    def __init__(self, library: Any, queries: Mapping[str, Query]) -> None:
        self._pid = os.getpid()
        self._library = library
        self._handle: Any = None
        self._queries = queries
        self._never: dict[str, str] = {}  # fields that are never queried (again), and why
        self._unsupported = self._lost = frozenset[int]()

    @abstractmethod
    def _code(self, error: Exception) -> int | None:
        """Return the library's status code; None if the error is not the library's."""

    def _words(self, error: Exception) -> str:
        return str(error)

    def read(self) -> tuple[Reading, dict[str, str]]:
        """Return the reading and why values are missing; a failure affects no other value.

        Raises:
            ProbeLost: If the device can no longer be reached.
        """
        if os.getpid() != self._pid:
            raise ProbeLost(f"{self.NAME} was opened in the parent process{self.FORKED}")
        values: dict[str, Any] = {}
        missing: dict[str, str] = {}
        for measure, query in self._queries.items():
            if measure not in self._never:
                values[measure] = self._ask(measure, query, missing)
        return Reading(**values), {**missing, **self._never}

    @abstractmethod
    def close(self) -> None:
        """Never raises."""

    def _ask(self, measure: str, query: Query, missing: dict[str, str]) -> Any:
        try:
            value = query(self._library, self._handle)
        except Exception as error:
            code = self._code(error)
            if code is None:  # such as a function that this version of the package lacks
                self._never[measure] = missing[measure] = f"{self.PACKAGE}: {error!r}"
                return None
            if code in self._lost:
                raise ProbeLost(f"{self.NAME} lost the device: {self._words(error)}") from error
            missing[measure] = f"{self.NAME}: {self._words(error)}"
            if code in self._unsupported:
                self._never[measure] = missing[measure]
            return None
        if value is None:
            missing[measure] = f"{self.NAME} gave an impossible value"
        return value


class OpenedProbe(ABC):
    """A device behind a vendor's library, which the first ``read`` opens.

    It pickles while closed. A single thread of a single process reads and closes it.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._missing: dict[str, str] = {}
        self._library: VendorLibrary | None = None
        self._refused: str | None = None  # why the library could not be opened
        self._answered = False

    @abstractmethod
    def _open(self) -> VendorLibrary:
        """Open the library.

        Raises:
            ProbeLost: If the device cannot be reached.
        """

    @property
    def missing(self) -> Mapping[str, str]:
        if self._refused is not None:
            return for_every_measure(self._refused)
        return MappingProxyType(self._missing)

    def read(self) -> Reading:
        """Read the device; nothing is reported if it was never reachable.

        Raises:
            ProbeLost: If a device that once answered is gone.
        """
        if self._refused is not None:
            return Reading()
        try:
            if self._library is None:
                self._library = self._open()
            reading, self._missing = self._library.read()
        except ProbeLost as lost:
            self.close()
            if self._answered:
                raise
            self._refused = str(lost)
            return Reading()
        self._answered = True
        return reading

    def close(self) -> None:
        library, self._library = self._library, None
        if library is not None:
            library.close()
