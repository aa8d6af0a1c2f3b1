"""A device of the outside world, and what it says of itself.

A `Probe` asks one `Device` what it does at this moment and gives a `Reading`. A `meter.Meter` adds
the readings of one device up to `meter.Totals`; a `sampler.Sampler` owns the thread that reads all
probes of the process once an interval.

    Probe.read() ─► Reading ─► Meter.add() ─► Totals      Sampler: the thread, the marks

Vendors live in files of their own (`nvml`, `amd`, `apple`, `cpu`): these three know no device.
Missing is None, never 0, and `missing` says why.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeAlias

__all__ = [
    "Device",
    "OpenedProbe",
    "Probe",
    "ProbeLost",
    "Query",
    "Reading",
    "SilentProbe",
    "VendorLibrary",
]


PLAUSIBLE_MHZ = 10_000
"""No clock is higher: one that says so is no clock."""


Query: TypeAlias = Callable[[Any, Any], "float | frozenset[str] | None"]
"""(library, handle of the device) -> a measure as in `Reading`, None where impossible."""


class ProbeLost(RuntimeError):
    """The device, or the way to it, is gone; the vendor's error is the cause (`from e`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Identity of one device that this process computes on."""

    key: str
    """Unique across hosts: `GPU-<uuid>`, `MIG-<uuid>`, `cpu:<host>:<boot id>`."""
    name: str
    """As the vendor reports it, e.g. `NVIDIA H100 80GB HBM3`: what `peaks` looks up."""
    kind: str
    """`cuda`, `cpu`, … as in `torch.device.type`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a device reported at one moment; None: it could not say."""

    busy_fraction: float | None = None
    """0..1: share of the time just before the reading in which the device worked."""
    power_watts: float | None = None
    energy_joules: float | None = None
    """A counter with an arbitrary origin: only differences mean anything."""
    memory_used_bytes: int | None = None
    sm_clock_mhz: float | None = None
    """Clock of the compute units at this moment, in MHz."""
    throttled: frozenset[str] | None = None
    """What holds the clocks down at this moment: `"power"`, `"heat"`, or `"fault"` where the
    hardware does not tell which; empty: nothing does."""


class Probe(Protocol):
    """Reads one device of the outside world. Made anywhere; read and closed by one thread."""

    @property
    def device(self) -> Device: ...

    @property
    def missing(self) -> Mapping[str, str]:
        """Why a measure is missing, keyed by the field of `Reading`."""
        ...

    def read(self) -> Reading:
        """A value that the vendor refuses is None. Raises `ProbeLost` when the device is gone."""
        ...

    def close(self) -> None:
        """Give back what `read` opened. Idempotent, never raises; `read` may open it again."""
        ...


class VendorLibrary(ABC):
    """A vendor's library held open for one device, in one process.

    Args:
        library: what the module is imported as; its functions are what the queries call.
        queries: how to ask for each field of `Reading`.
    """

    NAME: ClassVar[str]
    """Of the library, in reasons."""
    PACKAGE: ClassVar[str]
    """That brings the module."""
    FORKED: ClassVar[str] = ""
    """What a fork does to it."""

    def __init__(self, library: Any, queries: Mapping[str, Query]) -> None:
        self._pid = os.getpid()
        self._library = library
        self._handle: Any = None
        self._queries = queries
        self._never: dict[str, str] = {}  # what is not asked (any more), and why
        self._unsupported = self._lost = frozenset[int]()

    @abstractmethod
    def _code(self, error: Exception) -> int | None:
        """The status that the library answered with; None if the error is not the library's."""

    def _words(self, error: Exception) -> str:
        return str(error)

    def read(self) -> tuple[Reading, dict[str, str]]:
        """The reading, and why measures are missing from it: one that fails spoils no other.

        Raises `ProbeLost` when the device, or the way to it, is gone.
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
            if code is None:  # e.g. a function that this version of the package does not have
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
    """A device behind a vendor's library, which the first `read` opens.

    Picklable while closed. `read` and `close` belong to one thread and one process.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._missing: dict[str, str] = {}
        self._library: VendorLibrary | None = None
        self._refused: str | None = None  # why the library could never be opened
        self._answered = False

    @abstractmethod
    def _open(self) -> VendorLibrary:
        """Raises `ProbeLost` when there is no way to the device."""

    @property
    def missing(self) -> Mapping[str, str]:
        if self._refused is not None:
            return _for_all(self._refused)
        return MappingProxyType(self._missing)

    def read(self) -> Reading:
        """Raises `ProbeLost` for a device that once answered; before that, it is silent."""
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


@dataclass(frozen=True, slots=True)
class SilentProbe:
    """A device of known identity that reports nothing: its time still counts."""

    device: Device
    why: str

    @property
    def missing(self) -> Mapping[str, str]:
        return _for_all(self.why)

    def read(self) -> Reading:
        return Reading()

    def close(self) -> None:
        return None


def _for_all(why: str) -> Mapping[str, str]:
    return {f.name: why for f in fields(Reading)}
