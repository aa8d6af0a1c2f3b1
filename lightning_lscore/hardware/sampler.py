"""The thread that reads all devices of this process once per interval.

``Sampler.pause()`` and ``Sampler.resume()`` mark the edges of training immediately, and wake the
thread to take a reading there.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from .meter import Meter
from .probe import Device, Probe
from .totals import Totals

__all__ = ["Sampler"]

GAP_INTERVALS = 4.0
"""Readings further apart than this many intervals do not cover the time between them."""

RETRY_SECONDS = 30.0
"""How long a lost device is left alone before it is read again."""

HANG_SECONDS = 10.0
"""A reading that takes longer hangs."""


@dataclass(slots=True)
class _Channel:
    """One probe with its meter, and when to retry it after a loss."""

    probe: Probe
    meter: Meter
    lost: str | None = None
    retry_at: float | None = None
    asked_at: float | None = None  # while a reading is under way
    hung: bool = False


class Sampler:
    """One daemon thread per process, which reads all probes once per interval of training.

    The training thread never waits for a device: ``resume`` and ``pause`` only mark a time and
    wake the thread. A sampler holds plain state until ``start``, and pickles until then. In a
    forked child every call except ``start`` is a no-op: the parent continues to count.

    Args:
        probes: One for each device of this process.
        interval: Seconds between readings.
        owned: Keys of the devices whose time this process counts; None for all (see ``Meter``).
        now: Monotonic seconds.
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
        self._wanted = self._served = 0  # boundary readings requested, and taken
        self._waits = True  # until a reading was late once
        self._channels = [_Channel(probe, self._meter(probe)) for probe in self._probes]

    def _meter(self, probe: Probe) -> Meter:
        owner = self._owned is None or probe.device.key in self._owned
        return Meter(max_gap=GAP_INTERVALS * self._interval, owner=owner)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The probes' devices, in their order."""
        return tuple(probe.device for probe in self._probes)

    def start(self) -> None:
        """Start the thread, which reads nothing before ``resume``. No effect if it is running.

        After ``stop`` the totals continue; in a forked or spawned process they start at zero.
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
        """Mark that training runs from now on. No effect without a running thread."""
        self._mark(training=True)

    def pause(self) -> None:
        """Mark that training stops now: a validation starts, or the fit ends."""
        self._mark(training=False)

    def by_device(self, timeout: float = 0.5) -> dict[str, Totals]:
        """Return the totals of each device by its key, including the reading at the last boundary.

        Waits at most ``timeout`` seconds for that reading, and never again after it was late once:
        the totals then end at the reading before. A later call includes it, and until then the
        coverage shows the gap.
        """
        if self._wake is None or not self._is_mine():
            return {}

        def answered() -> bool:
            return self._served == self._wanted or not self._alive()

        with self._wake:
            if self._waits and timeout > 0:
                self._waits = self._wake.wait_for(answered, timeout)
            t = self._now()
            for channel in self._channels:
                self._notice_a_hang(channel, t)
            return {c.probe.device.key: c.meter.totals(t) for c in self._channels}

    def missing(self) -> dict[str, dict[str, str]]:
        """Return why values are missing or estimated, by device key and field of ``Reading``."""
        return {
            c.probe.device.key: {
                **c.meter.missing,
                **c.probe.missing,
                **({} if c.lost is None else {"device": c.lost}),
            }
            for c in self._channels
        }

    def messages(self) -> list[str]:
        """Return the warnings of the thread since the last call, for the caller to issue.

        The thread itself does not warn: with warnings turned into errors that would end it.
        """
        taken = list(self._messages)
        del self._messages[: len(taken)]
        return taken

    def stop(self, timeout: float = 2.0) -> None:
        """Stop training time and the thread; wait at most ``timeout`` seconds. Idempotent.

        A device that hung is not waited for.
        """
        if self._thread is None or self._wake is None or not self._is_mine():
            return
        self.pause()
        with self._wake:
            thread, self._thread = self._thread, None
            self._wake.notify_all()
        thread.join(
            timeout if self._waits else 0.0
        )  # held up in a vendor's call, it ends when that returns
        atexit.unregister(self.stop)

    def _is_mine(self) -> bool:
        # After a fork the child has the object, but no thread, and possibly a lock held forever.
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
        """Read every device. The lock is held for the arithmetic, never during a vendor's call."""
        for channel in self._channels:
            if channel.retry_at is not None and self._now() < channel.retry_at:
                continue
            channel.asked_at = self._now()
            try:
                reading = channel.probe.read()
            except (
                Exception
            ) as error:  # must not end the thread, which also reads the other devices
                with wake:
                    channel.asked_at = None
                    self._lose(channel, error)
                with contextlib.suppress(Exception):
                    channel.probe.close()
                continue
            with wake:
                channel.lost = channel.retry_at = channel.asked_at = None
                channel.meter.add(reading, self._now())

    def _notice_a_hang(self, channel: _Channel, t: float) -> None:
        if channel.hung or channel.asked_at is None or t - channel.asked_at < HANG_SECONDS:
            return
        channel.hung = True
        self._messages.append(
            f"{channel.probe.device.name} does not answer: its driver has kept a call for over "
            f"{HANG_SECONDS:.0f} s. Training does not wait for it; the coverage of its "
            "measurements shows the gap."
        )

    def _lose(self, channel: _Channel, error: Exception) -> None:
        name, seen = channel.probe.device.name, channel.lost
        channel.lost = str(error) or repr(error)
        channel.retry_at = self._now() + RETRY_SECONDS
        channel.meter.interrupt()
        if seen is None:  # failing retries are no news
            self._messages.append(
                f"{name} no longer answers: {channel.lost}. Training goes on; the coverage of its "
                f"measurements shows the gap, and LScore tries again every {RETRY_SECONDS:.0f} s."
            )
