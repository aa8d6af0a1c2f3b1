"""How much machine a run occupied: readings of devices, added up over training time.

A `Probe` asks one device what it does at this moment and gives a `Reading`; a `Meter` adds the
readings of one device up to `Totals`; a `Sampler` owns the thread that reads all probes of the
process once an interval. Vendors live elsewhere (`nvml`, `cpu`): this file knows no device.

    Probe.read() ─► Reading ─► Meter.add() ─► Totals      Sampler: the thread, the marks

Only training time counts. `Sampler.pause()` and `Sampler.resume()` mark its edges at once, and wake
the thread to take a reading there; whatever lies between two readings is shared out in proportion
to the training time in between, so a boundary reading that comes late costs resolution, not bias.

Missing is None, never 0, and `reasons` says why.
"""

from __future__ import annotations

import atexit
import contextlib
import operator
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

__all__ = [
    "Device", "Meter", "Probe", "ProbeLost", "Reading", "Sampler", "SilentProbe", "Totals",
]  # fmt: skip

PLAUSIBLE_WATTS = 20_000.0
"""No device draws more: a counter that says so is broken (2025's largest accelerators: 1.4 kW)."""

GAP_INTERVALS = 4.0
"""Readings further apart than this many intervals do not cover what lies between them."""

RETRY_SECONDS = 30.0
"""How long a lost device is left alone before it is asked again."""


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

    busy: float | None = None
    """0..1: share of the time just before the reading in which the device worked."""
    power_watts: float | None = None
    energy_joules: float | None = None
    """A counter with an arbitrary origin: only differences mean anything."""
    memory_used_bytes: int | None = None


class Probe(Protocol):
    """Reads one device of the outside world. Made anywhere; read and closed by one thread."""

    @property
    def device(self) -> Device: ...

    @property
    def reasons(self) -> Mapping[str, str]:
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
    def reasons(self) -> Mapping[str, str]:
        return {f.name: self.why for f in fields(Reading)}

    def read(self) -> Reading:
        return Reading()

    def close(self) -> None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over training time. `a + b` joins devices, ranks and resumed sessions alike.

    Every field is a plain number that sums, but those in `MAXIMA`, of which the largest counts.
    A sum of 0.0 over 0 known seconds is no measurement: use the properties, which give None then.
    """

    MAXIMA: ClassVar[frozenset[str]] = frozenset({"memory_peak_bytes"})

    training_seconds: float = 0.0
    """Device-seconds marked as training, read or not."""
    observed_seconds: float = 0.0
    """The part of them that readings cover; one in which every value is None covers nothing."""
    busy_seconds: float = 0.0
    busy_known_seconds: float = 0.0
    """The part for which `busy` was reported: what `busy_seconds` is a share of."""
    energy_joules: float = 0.0
    energy_estimated_joules: float = 0.0
    """The part of `energy_joules` that is integrated power, for want of a sound counter."""
    energy_known_seconds: float = 0.0
    memory_peak_bytes: int = 0
    """Largest reading, of one device; 0: none was reported."""
    readings: int = 0

    def __add__(self, other: Totals) -> Totals:
        joined: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            join = max if name in self.MAXIMA else operator.add
            joined[name] = join(getattr(self, name), getattr(other, name))
        return Totals(**joined)

    @property
    def coverage(self) -> float | None:
        """Share of training time that readings cover, 0..1."""
        return _ratio(self.observed_seconds, self.training_seconds)

    @property
    def busy_fraction(self) -> float | None:
        """Time-weighted mean of `busy`, 0..1 (ranks that share a host's CPU may add up past 1)."""
        fraction = _ratio(self.busy_seconds, self.busy_known_seconds)
        return None if fraction is None else min(fraction, 1.0)

    @property
    def power_watts(self) -> float | None:
        """Mean power of one device, in W."""
        return _ratio(self.energy_joules, self.energy_known_seconds)

    @property
    def energy_is_counter(self) -> bool:
        """True when all of the energy known comes from counters: measured, not estimated."""
        return self.energy_known_seconds > 0 and self.energy_estimated_joules == 0


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


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
    Between two readings no more than `max_gap` seconds apart, the later one's `busy` holds (its
    window ends there), weighted by the training seconds in between; further apart, nothing is
    known but the difference of an energy counter.

    Args:
        max_gap: seconds; a few sampling intervals.
        owner: False for a rank that shares the device with the rank that owns it (processes on
            one host's CPU): it adds its busy seconds and memory, and no time or energy.
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
        self._observed = self._busy = self._busy_known = 0.0
        self._peak = self._readings = 0

    @property
    def reasons(self) -> Mapping[str, str]:
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
            if reading.busy is not None:
                self._busy += seconds * reading.busy
                self._busy_known += seconds
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
            busy_seconds=self._busy, memory_peak_bytes=self._peak, readings=self._readings
        )
        if not self.owner:
            return shared
        joules, estimated, seconds = self._energy.known()
        return shared + Totals(
            training_seconds=self._trained + more,
            observed_seconds=self._observed,
            busy_known_seconds=self._busy_known,
            energy_joules=joules,
            energy_estimated_joules=estimated,
            energy_known_seconds=seconds,
        )

    def _advance(self, t: float) -> None:
        if self._training and t > self._latest:
            self._trained += t - self._latest
        self._latest = max(t, self._latest)


@dataclass(slots=True)
class _Channel:
    """One probe with its meter, and when to ask it again after a loss."""

    probe: Probe
    meter: Meter
    lost: str | None = None
    retry_at: float | None = None


class Sampler:
    """One daemon thread a process, which reads all of its probes once an interval of training.

    The training thread never waits for a device: `resume` and `pause` only mark a time and wake
    the thread. Nothing but plain state exists before `start`, so a sampler that was not started
    pickles. In a forked child every call but `start` is a no-op: the parent goes on counting.

    Args:
        probes: one for each device of this process.
        interval: seconds between readings.
        owned: keys of the devices whose time this process counts; None: all (see `Meter`'s owner).
        now: monotonic seconds.
    """

    def __init__(
        self,
        probes: Iterable[Probe],
        *,
        interval: float = 1.0,
        owned: Collection[str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be a positive number of seconds, got {interval!r}")
        self._probes = tuple(probes)
        self._interval = interval
        self._owned = owned
        self._now = now
        self._messages: list[str] = []
        self._thread: threading.Thread | None = None
        self._wake: threading.Condition | None = None
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._training = False
        self._wanted = self._served = 0  # boundary readings asked for, and taken
        self._channels = [_Channel(probe, self._meter(probe)) for probe in self._probes]

    def _meter(self, probe: Probe) -> Meter:
        owner = self._owned is None or probe.device.key in self._owned
        return Meter(max_gap=GAP_INTERVALS * self._interval, owner=owner)

    @property
    def devices(self) -> tuple[Device, ...]:
        """Of the probes, in their order."""
        return tuple(probe.device for probe in self._probes)

    def start(self) -> None:
        """Start the thread, which reads nothing before `resume`. Again: no effect.

        After `stop` the totals go on; in a forked or spawned process they begin at zero.
        """
        if not self._is_mine():
            self._begin()
            self._thread = self._wake = None  # the parent's
        if self._thread is not None:
            return
        self._wake = self._wake or threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lscore-sampler", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def resume(self) -> None:
        """Training goes on from this moment. Without a running thread: no effect."""
        self._mark(training=True)

    def pause(self) -> None:
        """Training stops at this moment: a validation begins, or the fit ends."""
        self._mark(training=False)

    def totals(self, timeout: float = 0.5) -> Totals:
        """Sum over this process's devices, including the reading at the last boundary.

        Waits at most `timeout` seconds for that reading. Without it the totals reach to the
        reading before; it is made up for later, and until then the coverage shows it missing.
        """
        return sum(self.by_device(timeout).values(), Totals())

    def by_device(self, timeout: float = 0.5) -> dict[str, Totals]:
        """`totals` of each device, by its key."""
        if self._wake is None or not self._is_mine():
            return {}
        with self._wake:
            self._wake.wait_for(lambda: self._served == self._wanted or not self._alive(), timeout)
            t = self._now()
            return {c.probe.device.key: c.meter.totals(t) for c in self._channels}

    def reasons(self) -> dict[str, dict[str, str]]:
        """Why measures are missing or estimated: by device key, then by field of `Reading`."""
        return {
            c.probe.device.key: {
                **c.meter.reasons,
                **c.probe.reasons,
                **({} if c.lost is None else {"device": c.lost}),
            }
            for c in self._channels
        }

    def messages(self) -> list[str]:
        """Warnings that arose in the thread since the last call, for the caller to issue.

        The thread does not warn by itself: where warnings are errors that would end it.
        """
        taken = list(self._messages)
        del self._messages[: len(taken)]
        return taken

    def stop(self, timeout: float = 2.0) -> None:
        """End training time and the thread; waits at most `timeout` seconds. Again: no effect."""
        if self._thread is None or self._wake is None or not self._is_mine():
            return
        self.pause()
        with self._wake:
            thread, self._thread = self._thread, None
            self._wake.notify_all()
        thread.join(timeout)  # one that a vendor's call holds longer ends by itself when it returns
        atexit.unregister(self.stop)

    def _is_mine(self) -> bool:
        # After a fork the child has the object but not its thread, and maybe a lock held for ever.
        return self._pid == os.getpid()

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _mark(self, *, training: bool) -> None:
        if self._thread is None or self._wake is None or not self._is_mine():
            return
        with self._wake:
            if training == self._training:
                return
            t = self._now()
            for channel in self._channels:
                (channel.meter.resume if training else channel.meter.pause)(t)
            self._training = training
            self._wanted += 1
            self._wake.notify_all()

    def _run(self) -> None:
        me, wake = threading.current_thread(), self._wake
        assert wake is not None

        def called() -> bool:
            return self._served < self._wanted or self._thread is not me

        while True:
            with wake:
                wake.wait_for(called, self._interval if self._training else None)
                wanted = self._wanted
                if self._thread is not me and self._served == wanted:
                    break
            self._sample(wake)
            with wake:
                self._served = wanted
                wake.notify_all()
        for probe in self._probes:
            with contextlib.suppress(Exception):
                probe.close()

    def _sample(self, wake: threading.Condition) -> None:
        """Read every device. The lock is held for the arithmetic, never for a vendor's call."""
        for channel in self._channels:
            if channel.retry_at is not None and self._now() < channel.retry_at:
                continue
            try:
                reading = channel.probe.read()
            except Exception as error:  # a thread that dies would lose the other devices as well
                with wake:
                    self._lose(channel, error)
                with contextlib.suppress(Exception):
                    channel.probe.close()
                continue
            with wake:
                channel.lost = channel.retry_at = None
                channel.meter.add(reading, self._now())

    def _lose(self, channel: _Channel, error: Exception) -> None:
        name, seen = channel.probe.device.name, channel.lost
        channel.lost = str(error) or repr(error)
        channel.retry_at = self._now() + RETRY_SECONDS
        channel.meter.interrupt()
        if seen is None:  # the retries that fail are no news
            self._messages.append(
                f"{name} no longer answers: {channel.lost}. Training goes on; the coverage of its "
                f"measurements shows the gap, and it is asked again every {RETRY_SECONDS:.0f} s."
            )
