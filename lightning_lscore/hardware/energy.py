"""The energy of one device over training time."""

from __future__ import annotations

from .probe import Reading

__all__ = ["Energy"]

PLAUSIBLE_WATTS = 20_000.0
"""No device draws more: a counter above it is broken (2025's largest accelerators: 1.4 kW)."""


class Energy:
    """Joules over training time: from the device's counter, or else by integrating its power.

    The counter may be read more often than it ticks, so energy is taken from one change to the
    next, in the proportion of training time to all time in between. A counter that stands still,
    runs backwards or leaps is no longer trusted: the power, integrated by the trapezoidal rule
    since the last sound value, takes its place.
    """

    def __init__(self, max_gap: float) -> None:
        self._max_gap = max_gap
        self._counter: tuple[float, float, float] | None = None  # t, trained, J at the last change
        self._power: tuple[float, float, float] | None = None  # t, trained, W at the last reading
        self._pending = (0.0, 0.0)  # J of power and training seconds since the last change
        self._moved = False
        self._joules = self._estimated = self._seconds = 0.0
        self.why: str | None = None  # why the counter is no longer trusted

    def add(self, reading: Reading, t: float, trained: float) -> None:
        """Add a reading at time ``t``, after ``trained`` seconds of training in all."""
        self._integrate(reading.power_watts, t, trained)
        if self.why is None and reading.energy_joules is not None:
            self._count(reading.energy_joules, t, trained)
        if self.why is not None or self._counter is None:
            self._settle()

    def interrupt(self) -> None:
        """Leave the time between the last reading and the next one unknown."""
        if not self._moved:
            self._settle()
        self._counter = self._power = None
        self._pending = (0.0, 0.0)
        self._moved = False

    def known(self) -> tuple[float, float, float]:
        """Return joules, the estimated part of them, and the training seconds that they span."""
        # The counter's next change will bring what is pending, unless the counter never changed.
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
            self._settle()  # what was integrated before the counter first reported
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
