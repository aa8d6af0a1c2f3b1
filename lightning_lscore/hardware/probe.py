"""A device of the outside world, and what it says of itself.

A `Probe` asks one `Device` what it does at this moment and gives a `Reading`. A `meter.Meter` adds
the readings of one device up to `meter.Totals`; a `sampler.Sampler` owns the thread that reads all
probes of the process once an interval.

    Probe.read() ─► Reading ─► Meter.add() ─► Totals      Sampler: the thread, the marks

Vendors live in files of their own (`nvml`, `amd`, `apple`, `cpu`): these three know no device.
Missing is None, never 0, and `missing` says why.
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


@dataclass(frozen=True, slots=True)
class SilentProbe:
    """A device of known identity that reports nothing: its time still counts."""

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
    return {f.name: why for f in fields(Reading)}


def why_missing(reading: Reading, why: Mapping[str, str], otherwise: str) -> dict[str, str]:
    """Return a reason for each measure that the reading lacks: from ``why``, or ``otherwise``."""
    return {
        f.name: why.get(f.name, otherwise)
        for f in fields(Reading)
        if getattr(reading, f.name) is None
    }
