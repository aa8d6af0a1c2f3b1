"""The values of a reading that are averaged over training time: one table.

A new one takes a line here, a field of ``Reading`` that probes fill, two fields of ``Totals`` and
the measure itself in ``DeviceUse``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .probe import Reading

__all__ = ["GAUGES", "GIB", "Gauge"]

GIB = 2**30
"""Bytes in a GiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauge:
    """A value that a device shows at a moment, and where its mean over time is kept."""

    measure: str
    """The field of ``DeviceUse`` that is its mean."""
    reading: str
    """The field of ``Reading`` that shows it."""
    value: Callable[[Reading], float | None]
    sum: str
    """The field of ``Totals`` that holds the value summed over time."""
    known: str
    """The field of ``Totals`` that holds the seconds for which the value was known."""
    unit: float = 1.0
    """The measure's unit in the reading's."""
    adds_up: bool = False
    """Whether the processes that share a device each show a part of it, as of its CPU time."""


def _held_down_by(reading: Reading, cause: str) -> bool | None:
    return None if reading.throttled is None else cause in reading.throttled


GAUGES = (
    Gauge(
        measure="busy_fraction",
        reading="busy_fraction",
        value=lambda reading: reading.busy_fraction,
        sum="busy_seconds",
        known="busy_known_seconds",
        adds_up=True,
    ),
    Gauge(
        measure="memory_mean_gib",
        reading="memory_used_bytes",
        value=lambda reading: reading.memory_used_bytes,
        sum="memory_byte_seconds",
        known="memory_known_seconds",
        unit=GIB,
    ),
    Gauge(
        measure="sm_clock_mhz",
        reading="sm_clock_mhz",
        value=lambda reading: reading.sm_clock_mhz,
        sum="sm_clock_mhz_seconds",
        known="sm_clock_known_seconds",
    ),
    Gauge(
        measure="throttled_fraction",
        reading="throttled",
        value=lambda reading: None if reading.throttled is None else bool(reading.throttled),
        sum="throttled_seconds",
        known="throttled_known_seconds",
    ),
    Gauge(
        measure="throttled_by_power_fraction",
        reading="throttled",
        value=lambda reading: _held_down_by(reading, "power"),
        sum="throttled_by_power_seconds",
        known="throttled_known_seconds",
    ),
    Gauge(
        measure="throttled_by_heat_fraction",
        reading="throttled",
        value=lambda reading: _held_down_by(reading, "heat"),
        sum="throttled_by_heat_seconds",
        known="throttled_known_seconds",
    ),
)
