"""Windows that slide over a text longer than a model reads at once.

A model reads at most C tokens at a time (``context_length``). The first window predicts C tokens;
each later one begins S tokens further (``stride``), reads C tokens and is scored on the last S of
its predictions only, so the others serve as context and every token is counted once:

    tokens      b 1 2 3 4 5 6 7 8 9        C = 4, S = 2, b the beginning-of-sequence token
    window 0    b 1 2 3                    predicts 1 2 3 4
    window 1        2 3 4 5                predicts     5 6
    window 2            4 5 6 7            predicts         7 8
    window 3                6 7 8          predicts             9

At S = C windows share no input; at S = 1 every token has all the context that the model can use,
at C / S times the work. Perplexity depends on context, stride and beginning: state them with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Inputs ids[begin:end]; each predicts the next, and the last ``new`` predictions count."""

    begin: int
    end: int
    new: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.end - self.begin, self.new


def _windows(predicted: int, context: int, stride: int, full_last: bool) -> Iterator[Window]:
    """Yield windows over predicted + 1 tokens; together they predict all but the first, once."""
    end = min(context, predicted)
    yield Window(0, end, end)
    for begin in itertools.count(stride, stride):
        if end == predicted:
            return
        new = min(stride, predicted - end)
        end += new
        yield Window(end - context if full_last else begin, end, new)


def batches_of_windows(
    predicted: int, context: int, stride: int, full_last: bool, size: int
) -> Iterator[list[Window]]:
    """Group neighbouring windows of equal shape."""
    windows = _windows(predicted, context, stride, full_last)
    for _, alike in itertools.groupby(windows, lambda window: window.shape):
        while batch := list(itertools.islice(alike, size)):
            yield batch
