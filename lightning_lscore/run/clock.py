"""Training time apart from validation."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """A stopwatch for training: pause it while validating, so that validating more often is free.

    Args:
        now: a monotonic clock, in seconds. Wall-clock time would jump when the system's is set.

    >>> t = iter([0.0, 10.0, 100.0, 105.0])
    >>> clock = Clock(now=lambda: next(t))
    >>> clock.resume(); clock.pause()      # trains from 0 s to 10 s
    >>> clock.resume(); clock.pause()      # and from 100 s to 105 s
    >>> clock.seconds
    15.0
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._before = 0.0
        self._since: float | None = None

    def resume(self) -> None:
        """Start counting; no effect while it counts."""
        if self._since is None:
            self._since = self._now()

    def pause(self) -> None:
        """Stop counting; no effect while it stands still."""
        self._before = self.seconds
        self._since = None

    def leave_out(self, seconds: float) -> None:
        """Take back seconds that have just been counted and were no training, if it counts."""
        if self._since is not None:
            self._before -= seconds

    @property
    def runs(self) -> bool:
        """Whether it is counting."""
        return self._since is not None

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        return self._before + (self._now() - self._since if self._since is not None else 0.0)
