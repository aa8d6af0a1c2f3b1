"""Readings of one device, added up over training time. Pure arithmetic.

Only training time counts. Whatever lies between two readings is shared out in proportion to the
training time in between, so a reading at the edge of training that comes late costs resolution, not
bias.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..equation.evidence import DeviceUse
from .probe import Reading

__all__ = ["Meter", "Totals"]

PLAUSIBLE_WATTS = 20_000.0
"""No device draws more: a counter that says so is broken (2025's largest accelerators: 1.4 kW)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over training time. `a + b` joins devices, ranks and resumed sessions alike.

    Every field is a plain number that sums, but those in `MAXIMA`, of which the largest counts.
    A sum of 0.0 over 0 known seconds is no measurement: `use` gives None then.
    """

    MAXIMA: ClassVar[frozenset[str]] = frozenset({"memory_peak_bytes"})

    training_seconds: float = 0.0
    """Device-seconds marked as training, read or not."""
    observed_seconds: float = 0.0
    """The part of them that readings cover; one in which every value is None covers nothing."""
    busy_seconds: float = 0.0
    busy_known_seconds: float = 0.0
    """The part for which `busy_fraction` was reported: what `busy_seconds` is a share of."""
    energy_joules: float = 0.0
    energy_estimated_joules: float = 0.0
    """The part of `energy_joules` that is integrated power, for want of a sound counter."""
    energy_known_seconds: float = 0.0
    memory_peak_bytes: int = 0
    """Largest reading, of one device; 0: none was reported."""
    memory_byte_seconds: float = 0.0
    """The memory in use summed over time."""
    memory_known_seconds: float = 0.0
    sm_clock_mhz_seconds: float = 0.0
    """The clock summed over time, in MHz s."""
    sm_clock_known_seconds: float = 0.0
    throttled_seconds: float = 0.0
    throttled_by_power_seconds: float = 0.0
    """The part of them in which power was a cause, alone or beside others; so for heat."""
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
        """What was added after ``before``, such that ``before + a.since(before) == a``."""
        added = {
            f.name: getattr(self, f.name)
            - (0 if f.name in self.MAXIMA else getattr(before, f.name))
            for f in fields(self)
        }
        return Totals(**added)

    def use(self) -> DeviceUse:
        """Return what is known of one device, or on a sum over devices of them on average.

        Means are weighted by time. Ranks that share a host's CPU may each count a little too much
        CPU time: their sum is cut at the whole device.
        """
        gib, throttled = 2**30, self.throttled_known_seconds
        busy = _ratio(self.busy_seconds, self.busy_known_seconds)
        known = self.energy_known_seconds
        return DeviceUse(
            coverage=_ratio(self.observed_seconds, self.training_seconds),
            busy_fraction=None if busy is None else min(busy, 1.0),
            sm_clock_mhz=_ratio(self.sm_clock_mhz_seconds, self.sm_clock_known_seconds),
            throttled_fraction=_ratio(self.throttled_seconds, throttled),
            throttled_by_power_fraction=_ratio(self.throttled_by_power_seconds, throttled),
            throttled_by_heat_fraction=_ratio(self.throttled_by_heat_seconds, throttled),
            memory_mean_gib=_ratio(self.memory_byte_seconds / gib, self.memory_known_seconds),
            memory_peak_gib=self.memory_peak_bytes / gib or None,
            power_watts=_ratio(self.energy_joules, known),
            energy_kwh=self.energy_joules / 3.6e6 if known else None,
        )

    @property
    def energy_is_counter(self) -> bool:
        """True when all of the energy known comes from counters: measured, not estimated."""
        return self.energy_known_seconds > 0 and self.energy_estimated_joules == 0


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


class _Integral:
    """A value summed over training time, and the time for which it was known."""

    __slots__ = ("known", "sum")

    def __init__(self) -> None:
        self.sum = self.known = 0.0

    def add(self, value: float | None, seconds: float) -> None:
        if value is not None:
            self.sum += seconds * value
            self.known += seconds


class _Energy:
    """Joules over training time: by the device's counter, else by the trapezoid of its power.

    The counter is charged from one of its changes to the next, since it may be read more often
    than it ticks, and in the proportion of training time to time in between. A counter that stands
    still, runs backwards or leaps is distrusted from there on: the power integrated since its last
    sound value takes its place.
    """

    def __init__(self, max_gap: float) -> None:
        self._max_gap = max_gap
        self._counter: tuple[float, float, float] | None = None  # t, trained, J at the last change
        self._power: tuple[float, float, float] | None = None  # t, trained, W at the last reading
        self._pending = (0.0, 0.0)  # J of power and training seconds since the last change
        self._moved = False
        self._joules = self._estimated = self._seconds = 0.0
        self.why: str | None = None  # why the counter is distrusted

    def add(self, reading: Reading, t: float, trained: float) -> None:
        """A reading at time t, after `trained` seconds of training in all."""
        self._integrate(reading.power_watts, t, trained)
        if self.why is None and reading.energy_joules is not None:
            self._count(reading.energy_joules, t, trained)
        if self.why is not None or self._counter is None:
            self._settle()

    def interrupt(self) -> None:
        """Nothing that lies between the readings before and after this is known."""
        if not self._moved:
            self._settle()
        self._counter = self._power = None
        self._pending = (0.0, 0.0)
        self._moved = False

    def known(self) -> tuple[float, float, float]:
        """Joules, the estimated part of them, and the training seconds that they span."""
        # What awaits a counter's next change is not lost: the change will bring it. A counter that
        # never changed promises nothing, though.
        joules, seconds = (0.0, 0.0) if self._moved else self._pending
        return self._joules + joules, self._estimated + joules, self._seconds + seconds

    def _integrate(self, watts: float | None, t: float, trained: float) -> None:
        if watts is None or not 0 <= watts <= PLAUSIBLE_WATTS:
            return
        if self._power is not None and t - self._power[0] <= self._max_gap:
            seconds = trained - self._power[1]
            joules = seconds * (watts + self._power[2]) / 2
            self._pending = (self._pending[0] + joules, self._pending[1] + seconds)
        self._power = (t, trained, watts)

    def _count(self, counter: float, t: float, trained: float) -> None:
        if self._counter is None:
            self._settle()  # what was integrated before the counter first spoke
            self._counter = (t, trained, counter)
            return
        then, trained_then, last = self._counter
        elapsed, seconds, gained = t - then, trained - trained_then, counter - last
        if gained < 0:
            self.why = "the energy counter ran backwards"
        elif gained > PLAUSIBLE_WATTS * max(elapsed, 1.0):
            self.why = f"the energy counter leapt by {gained:.0f} J in {elapsed:.1f} s"
        elif gained == 0 and seconds > self._max_gap:
            self.why = f"the energy counter stood still for {seconds:.1f} s of training"
        elif gained > 0 and elapsed > 0:
            self._joules += gained * seconds / elapsed
            self._seconds += seconds
            self._pending = (0.0, 0.0)
            self._counter = (t, trained, counter)
            self._moved = True

    def _settle(self) -> None:
        joules, seconds = self._pending
        self._joules += joules
        self._estimated += joules
        self._seconds += seconds
        self._pending = (0.0, 0.0)


class Meter:
    """Adds the readings of one device up over training time. Pure arithmetic: no clock, no thread.

    Times are seconds on any monotonic clock, given in order: an earlier one counts as the latest.
    Between two readings no more than `max_gap` seconds apart, what the later one says holds (the
    window of `busy_fraction` ends there), weighted by the training seconds in between; further
    apart, nothing is known but the difference of an energy counter.

    Args:
        max_gap: seconds; a few sampling intervals.
        owner: False for a rank that shares the device with the rank that owns it (processes on
            one host's CPU): it adds its busy seconds and its memory's peak, no time or energy.
    """

    def __init__(self, *, max_gap: float, owner: bool = True) -> None:
        if not max_gap > 0:
            raise ValueError(f"max_gap must be a positive number of seconds, got {max_gap!r}")
        self.owner = owner
        self._max_gap = max_gap
        self._training = False
        self._latest = float("-inf")  # time of the latest mark or reading
        self._trained = 0.0  # training seconds until then
        self._last: tuple[float, float] | None = None  # t and trained at the last reading
        self._energy = _Energy(max_gap)
        self._observed = 0.0
        self._busy, self._memory, self._clock = _Integral(), _Integral(), _Integral()
        self._throttled, self._by_power, self._by_heat = _Integral(), _Integral(), _Integral()
        self._peak = self._readings = 0

    @property
    def missing(self) -> Mapping[str, str]:
        """Why the energy is not the counter's alone, if so."""
        why = self._energy.why
        return (
            {} if why is None else {"energy_joules": f"{why}; from there on by its power, if known"}
        )

    def resume(self, t: float) -> None:
        """Training goes on at time t. Again while it goes on: no effect."""
        self._advance(t)
        self._training = True

    def pause(self, t: float) -> None:
        """Training stops at time t. Again while it is stopped: no effect."""
        self._advance(t)
        self._training = False

    def add(self, reading: Reading, t: float) -> None:
        """A reading that was complete at time t."""
        self._advance(t)
        t, trained = self._latest, self._trained
        if self._last is not None and t - self._last[0] <= self._max_gap:
            seconds = trained - self._last[1]
            self._observed += seconds if reading != Reading() else 0.0
            self._busy.add(reading.busy_fraction, seconds)
            self._memory.add(reading.memory_used_bytes, seconds)
            self._clock.add(reading.sm_clock_mhz, seconds)
            if reading.throttled is not None:
                self._throttled.add(bool(reading.throttled), seconds)
                self._by_power.add("power" in reading.throttled, seconds)
                self._by_heat.add("heat" in reading.throttled, seconds)
        self._energy.add(reading, t, trained)
        self._peak = max(self._peak, reading.memory_used_bytes or 0)
        self._readings += 1
        self._last = (t, trained)

    def interrupt(self) -> None:
        """The device was lost: no reading of before says anything about the time since."""
        self._last = None
        self._energy.interrupt()

    def totals(self, t: float | None = None) -> Totals:
        """What is known by now; t extends the training time, not what was observed of it."""
        more = max(0.0, t - self._latest) if t is not None and self._training else 0.0
        shared = Totals(
            busy_seconds=self._busy.sum, memory_peak_bytes=self._peak, readings=self._readings
        )
        if not self.owner:
            return shared
        joules, estimated, seconds = self._energy.known()
        return shared + Totals(
            training_seconds=self._trained + more,
            observed_seconds=self._observed,
            busy_known_seconds=self._busy.known,
            memory_byte_seconds=self._memory.sum,
            memory_known_seconds=self._memory.known,
            sm_clock_mhz_seconds=self._clock.sum,
            sm_clock_known_seconds=self._clock.known,
            throttled_seconds=self._throttled.sum,
            throttled_by_power_seconds=self._by_power.sum,
            throttled_by_heat_seconds=self._by_heat.sum,
            throttled_known_seconds=self._throttled.known,
            energy_joules=joules,
            energy_estimated_joules=estimated,
            energy_known_seconds=seconds,
        )

    def _advance(self, t: float) -> None:
        if self._training and t > self._latest:
            self._trained += t - self._latest
        self._latest = max(t, self._latest)
