"""A device and what it reports.

A ``Probe`` reads what one ``Device`` is doing right now and returns a ``Reading``. A
``meter.Meter`` adds the readings of one device up to ``totals.Totals``. A ``sampler.Sampler`` owns
the thread that reads all probes of the process once per interval.

    Probe.read() ─► Reading ─► Meter.add() ─► Totals      Sampler: the thread, the marks

Each vendor has its own file (``nvml``, ``amd``, ``apple``, ``cpu``); probe, meter and sampler know
none of them. A missing value is None, never 0, and ``missing`` gives the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

__all__ = [
    "Device",
    "Probe",
    "ProbeLost",
    "Reading",
    "SilentProbe",
    "for_every_measure",
    "why_missing",
]


class ProbeLost(RuntimeError):
    """The device can no longer be reached; the vendor's error is the cause (``from e``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The identity of one device that this process computes on."""

    key: str
    """Unique across hosts: ``GPU-<uuid>``, ``MIG-<uuid>``, ``cpu:<host>:<boot id>``."""
    name: str
    """As the vendor reports it, e.g. ``NVIDIA H100 80GB HBM3``: the key in the table of peaks."""
    kind: str
    """``cuda``, ``cpu``, … as in ``torch.device.type``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a device reported at one moment; None where it reported nothing."""

    busy_fraction: float | None = None
    """Share of the time just before the reading in which the device was busy, 0..1."""
    power_watts: float | None = None
    energy_joules: float | None = None
    """A counter with an arbitrary origin: only its differences count."""
    memory_used_bytes: int | None = None
    sm_clock_mhz: float | None = None
    """Current clock of the compute units."""
    throttled: frozenset[str] | None = None
    """What currently holds the clocks down: ``"power"``, ``"heat"``, or ``"fault"`` where the
    hardware does not report which; empty if nothing does."""


class Probe(Protocol):
    """Reads one device. Created in any thread; read and closed by a single one."""

    @property
    def device(self) -> Device: ...

    @property
    def missing(self) -> Mapping[str, str]:
        """Why a value is missing, by field of ``Reading``."""
        ...

    def read(self) -> Reading:
        """Read the device. A value that the vendor refuses is None.

        Raises:
            ProbeLost: If the device is gone.
        """
        ...

    def close(self) -> None:
        """Release what ``read`` opened; ``read`` may open it again. Idempotent, never raises."""
        ...


@dataclass(frozen=True, slots=True)
class SilentProbe:
    """A device that reports nothing but its identity: its time still counts."""

    device: Device
    why: str

    @property
    def missing(self) -> Mapping[str, str]:
        return for_every_measure(self.why)

    def read(self) -> Reading:
        return Reading()

    def close(self) -> None:
        return None


def for_every_measure(why: str) -> Mapping[str, str]:
    """Return the same reason for every field of ``Reading``."""
    return {f.name: why for f in fields(Reading)}


def why_missing(reading: Reading, why: Mapping[str, str], otherwise: str) -> dict[str, str]:
    """Return a reason for each value that the reading lacks: from ``why``, or ``otherwise``."""
    return {
        f.name: why.get(f.name, otherwise)
        for f in fields(Reading)
        if getattr(reading, f.name) is None
    }
