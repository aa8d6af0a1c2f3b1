"""Adds up the readings of one device over training time. Pure arithmetic.

Only training time counts. What happens between two readings is divided in proportion to the
training time in between. A late reading at the edge of training thus costs resolution, but adds no
bias.
"""

from __future__ import annotations

from collections.abc import Mapping

from .energy import Energy
from .gauges import GAUGES
from .probe import Reading
from .totals import Totals

__all__ = ["Meter"]


class _Integral:
    """A value integrated over training time, and the seconds for which it was known."""

    __slots__ = ("known", "sum")

    def __init__(self) -> None:
        self.sum = self.known = 0.0

    def add(self, value: float | None, seconds: float) -> None:
        if value is not None:
            self.sum += seconds * value
            self.known += seconds


class Meter:
    """Adds up the readings of one device over training time, without a clock or a thread.

    Times are seconds on any monotonic clock, in order; an earlier time counts as the latest one.
    Between two readings at most ``max_gap`` seconds apart, the values of the later one hold (its
    ``busy_fraction`` covers the time before it), weighted by the training seconds in between.
    Over a longer gap only the difference of an energy counter is known.

    Args:
        max_gap: Seconds; a few sampling intervals.
        owner: False for a rank that shares the device with its owner (processes on one host's
            CPU): it adds its busy seconds and its memory peak, but no time or energy.
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
        self._energy = Energy(max_gap)
        self._observed = 0.0
        self._integrals = [_Integral() for _ in GAUGES]  # in their order: functions do not pickle
        self._peak = self._readings = 0

    @property
    def missing(self) -> Mapping[str, str]:
        """Why the energy does not come from the counter alone, if it does not."""
        why = self._energy.why
        return (
            {} if why is None else {"energy_joules": f"{why}; from there on by its power, if known"}
        )

    def resume(self, t: float) -> None:
        """Start or continue training at time ``t``. No effect while it is running."""
        self._advance(t)
        self._training = True

    def pause(self, t: float) -> None:
        """Stop training at time ``t``. No effect while it is stopped."""
        self._advance(t)
        self._training = False

    def add(self, reading: Reading, t: float) -> None:
        """Add a reading that was complete at time ``t``."""
        self._advance(t)
        t, trained = self._latest, self._trained
        if self._last is not None and t - self._last[0] <= self._max_gap:
            seconds = trained - self._last[1]
            self._observed += seconds if reading != Reading() else 0.0
            for gauge, integral in zip(GAUGES, self._integrals, strict=True):
                integral.add(gauge.value(reading), seconds)
        self._energy.add(reading, t, trained)
        self._peak = max(self._peak, reading.memory_used_bytes or 0)
        self._readings += 1
        self._last = (t, trained)

    def interrupt(self) -> None:
        """Leave the time until the next reading unknown: the device was lost."""
        self._last = None
        self._energy.interrupt()

    def totals(self, t: float | None = None) -> Totals:
        """Return the sums so far; ``t`` extends the training time, not its observed part."""
        more = max(0.0, t - self._latest) if t is not None and self._training else 0.0
        integrals = list(zip(GAUGES, self._integrals, strict=True))
        if not self.owner:
            sums = {gauge.sum: each.sum for gauge, each in integrals if gauge.adds_up}
            return Totals(**sums, memory_peak_bytes=self._peak, readings=self._readings)
        joules, estimated, seconds = self._energy.known()
        return Totals(
            **{gauge.sum: each.sum for gauge, each in integrals},
            **{gauge.known: each.known for gauge, each in integrals},
            training_seconds=self._trained + more,
            observed_seconds=self._observed,
            energy_joules=joules,
            energy_estimated_joules=estimated,
            energy_known_seconds=seconds,
            memory_peak_bytes=self._peak,
            readings=self._readings,
        )

    def _advance(self, t: float) -> None:
        if self._training and t > self._latest:
            self._trained += t - self._latest
        self._latest = max(t, self._latest)
