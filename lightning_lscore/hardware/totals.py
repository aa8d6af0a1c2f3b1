"""Sums over training time, which add up over devices, ranks and resumed runs."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..equation.evidence import DeviceUse
from .gauges import GAUGES, GIB

__all__ = ["Totals"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over training time. ``a + b`` joins devices, ranks and resumed sessions alike.

    Fields are plain numbers that add up, except those in ``MAXIMA``, of which the largest counts.
    A sum of 0.0 over 0 known seconds is no measurement: ``use`` returns None for it.
    """

    MAXIMA: ClassVar[frozenset[str]] = frozenset({"memory_peak_bytes"})

    training_seconds: float = 0.0
    """Device-seconds of training, with or without readings."""
    observed_seconds: float = 0.0
    """The part of them that readings cover; a reading without any value covers nothing."""
    busy_seconds: float = 0.0
    busy_known_seconds: float = 0.0
    """The part for which ``busy_fraction`` was reported: the whole of ``busy_seconds``."""
    energy_joules: float = 0.0
    energy_estimated_joules: float = 0.0
    """The part of ``energy_joules`` that is integrated power, where there is no sound counter."""
    energy_known_seconds: float = 0.0
    memory_peak_bytes: int = 0
    """Largest reading of one device; 0 if there was none."""
    memory_byte_seconds: float = 0.0
    """Memory in use, integrated over time."""
    memory_known_seconds: float = 0.0
    sm_clock_mhz_seconds: float = 0.0
    """Clock, integrated over time, in MHz s."""
    sm_clock_known_seconds: float = 0.0
    throttled_seconds: float = 0.0
    throttled_by_power_seconds: float = 0.0
    """The part of them with power among the causes; likewise for heat."""
    throttled_by_heat_seconds: float = 0.0
    throttled_known_seconds: float = 0.0
    readings: int = 0

    def __add__(self, other: Totals) -> Totals:
        joined: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            join = max if name in self.MAXIMA else operator.add
            joined[name] = join(getattr(self, name), getattr(other, name))
        return Totals(**joined)

    def since(self, before: Totals) -> Totals:
        """Return what was added after ``before``: ``before + a.since(before) == a``."""
        added = {
            f.name: getattr(self, f.name)
            - (0 if f.name in self.MAXIMA else getattr(before, f.name))
            for f in fields(self)
        }
        return Totals(**added)

    def use(self) -> DeviceUse:
        """Return the measures of one device, or the averages of several if this is their sum.

        Means are weighted by time. Ranks that share a host's CPU may together count a little more
        CPU time than there was: the busy fraction is capped at 1.
        """
        means = {
            gauge.measure: _ratio(getattr(self, gauge.sum) / gauge.unit, getattr(self, gauge.known))
            for gauge in GAUGES
        }
        if means["busy_fraction"] is not None:
            means["busy_fraction"] = min(means["busy_fraction"], 1.0)
        known = self.energy_known_seconds
        return DeviceUse(
            **means,
            coverage=_ratio(self.observed_seconds, self.training_seconds),
            memory_peak_gib=self.memory_peak_bytes / GIB or None,
            power_watts=_ratio(self.energy_joules, known),
            energy_kwh=self.energy_joules / 3.6e6 if known else None,
        )

    @property
    def energy_is_counter(self) -> bool:
        """Whether all of the known energy comes from counters: measured, not estimated."""
        return self.energy_known_seconds > 0 and self.energy_estimated_joules == 0


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
