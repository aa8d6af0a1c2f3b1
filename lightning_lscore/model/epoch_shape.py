"""How the tokens of an epoch are spread over its batches, as far as a loader tells in advance."""

from __future__ import annotations

import contextlib
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from .tokens import TokenCounter

ROWS = 512
"""So many rows are read in advance, evenly spread over a longer epoch."""
BATCHES = range(8, 256)
"""In so many batches at least, and at most."""
SECONDS = 0.25
"""Data that takes longer is left alone."""


@dataclass(frozen=True, kw_only=True)
class EpochShape:
    """What the batches of an epoch hold, relative to each other.

    >>> EpochShape(length=3, read=(4, 4, 12)).until(7)  # two epochs, and one batch
    44.0
    >>> EpochShape(length=3, short=0.5).until(6)  # the third batch of each is half as large
    5.0
    """

    length: int
    """Batches of an epoch."""
    read: Sequence[float] = (1.0,)
    """Tokens of batches that are evenly spread over an epoch."""
    short: float = 0.0
    """What the last batch lacks, in the unit of ``read``."""

    @property
    def is_read(self) -> bool:
        """Whether it comes from the data, and not from the number of rows alone."""
        return len(self.read) > 1

    def until(self, batches: float) -> float:
        """Return what a run's first so many batches hold."""
        epochs, rest = divmod(batches, self.length)
        share = len(self.read) / self.length
        whole, part = divmod(rest * share, 1)
        begun = sum(self.read[: int(whole)])
        if part:
            begun += part * self.read[int(whole)]
        return epochs * (sum(self.read) / share - self.short) + begun / share


def epoch_shape(
    loader: Any, batches: float, count_tokens: Callable[[Any], int] | None = None
) -> EpochShape | None:
    """Return the shape of a loader's epochs; None if nothing is known of it.

    Rows are read where their order is that of the data, so that later ones may be longer, and
    where this process reads them anyway: a worker's data may not bear to be opened here.

    Args:
        loader: a process's own.
        batches: of an epoch; it may end before the loader does.
        count_tokens: see :class:`TokenCounter`.
    """
    if not (isinstance(loader, DataLoader) and type(loader.batch_sampler) is BatchSampler):
        return None
    sampler, size = loader.batch_sampler.sampler, loader.batch_sampler.batch_size
    if not isinstance(sampler, Sized) or not 0 < batches < math.inf:
        return None
    rows, length = len(sampler), int(batches)
    in_order = isinstance(sampler, SequentialSampler) and loader.num_workers == 0
    read = _read_ahead(loader, length, rows, count_tokens) if in_order else None
    if read is not None:
        return EpochShape(length=length, read=read)
    return EpochShape(length=length, short=max(0.0, length - rows / size))


def _read_ahead(
    loader: DataLoader[Any], length: int, rows: int, count_tokens: Callable[[Any], int] | None
) -> list[float] | None:
    dataset, size, began = loader.dataset, loader.batch_size or 1, time.monotonic()
    many = min(length, max(BATCHES.start, min(BATCHES.stop, ROWS // size)))
    tokens: list[float] = []
    counter = TokenCounter(count_tokens)
    # What goes wrong here will go wrong in training, where it is someone's to see.
    with contextlib.suppress(Exception), _same_random_numbers():
        for i in range(many):
            first = int((i + 0.5) * length / many) * size
            indices = list(range(first, min(first + size, rows)))
            fetch = getattr(dataset, "__getitems__", lambda them: [dataset[i] for i in them])
            before = counter.total
            counter.add(loader.collate_fn(fetch(indices)))
            if counter.uncounted or time.monotonic() - began > SECONDS:
                break
            tokens.append(float(counter.total - before))
    return tokens if len(tokens) == many > 1 and min(tokens) > 0 else None


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Let the numbers that are drawn inside of the ``with`` be drawn again afterwards."""
    numpy, state = sys.modules.get("numpy"), random.getstate()
    arrays = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(arrays)
