"""Passes over a training set."""

from __future__ import annotations

import math
from collections.abc import Callable


class Epochs:
    """Counts passes over a training set whose number of batches may change between them.

    Args:
        length: batches of an epoch of this process, or a function that tells them as they are now;
            infinite if the set has no length.

    >>> lengths = [4]
    >>> epochs = Epochs(lambda: lengths[-1])
    >>> epochs.after(2)
    0.5
    >>> epochs.end(4); lengths.append(2)  # the loader was made again
    >>> epochs.after(5)
    1.5
    """

    def __init__(self, length: float | Callable[[], float] = math.inf) -> None:
        self._length = length
        self._past = 0.0  # epochs that have ended, or were left
        self._batches = 0  # in them
        self._had_lengths = True  # all of them

    @property
    def length(self) -> float:
        """Batches of the present epoch."""
        return max(1.0, self._length() if callable(self._length) else self._length)

    @property
    def known(self) -> bool:
        """Whether all epochs so far had a length."""
        return self._had_lengths and math.isfinite(self.length)

    def after(self, batches: int) -> float:
        """Return the epochs that so many batches are."""
        return self._past + (batches - self._batches) / self.length

    def end(self, batches: int) -> None:
        """End the present epoch after so many batches in all, before its loader changes."""
        self._had_lengths = self.known
        self._past, self._batches = self.after(batches), batches
