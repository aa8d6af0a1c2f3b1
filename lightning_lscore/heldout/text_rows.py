"""Which loss calls of a step are of the batch's own text, and how their rows lie in it.

A loss call has rows and labels, usually flattened: [B·T], one of several chunks, time first. It is
a language model's if its labels continue the tokens that were read: each is the token after the
one at its row. That is looked up once for each pattern of sizes, since looking waits for a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .loss_call import IGNORED, LossCall
from .nothing_found import FEWEST_WORDS


class Fit(IntEnum):
    """How labels [B, T'] lie in tokens [B, T], from the weakest to the strongest."""

    NONE = 0
    PICKED = 1
    """A selection of the tokens, in their order."""
    SAME = 2
    """Tokens that are read at the same row: right if others stand in front, as pictures do."""
    END = 3
    """The last T' of the tokens."""
    NEXT = 4
    """Label t is token t + 1."""


Layout = Callable[[Sequence[Tensor], int], Tensor]
"""(one tensor for each call, sequences B) -> [B, T']."""


def _in_rows(parts: Sequence[Tensor], size: int) -> Tensor:
    return torch.cat([part.flatten() for part in parts]).view(size, -1)


def _in_chunks(parts: Sequence[Tensor], size: int) -> Tensor:
    return torch.cat([part.reshape(size, -1) for part in parts], 1)


def _time_first(parts: Sequence[Tensor], size: int) -> Tensor:
    return torch.cat([part.flatten() for part in parts]).view(-1, size).t()


def _one_row(parts: Sequence[Tensor], size: int) -> Tensor:
    return torch.cat([part.flatten() for part in parts])[None]


class Text(NamedTuple):
    """Loss calls that together are of one text."""

    calls: tuple[int, ...]
    fit: Fit
    size: int
    """Sequences B."""
    layout: Layout
    read: int
    """Which of the texts that were looked through."""

    def rows(self, heard: Sequence[LossCall]) -> tuple[Tensor, Tensor]:
        """Return NLL and labels, [B, T'] each."""
        chosen = [heard[i] for i in self.calls]
        nll = self.layout([call.nll for call in chosen], self.size)
        return nll, self.layout([call.labels for call in chosen], self.size)

    def values(self, heard: Sequence[LossCall]) -> Tensor | None:
        """Return what the calls returned, [B, T'], if they reduced nothing."""
        parts = [part for i in self.calls if (part := heard[i].values) is not None]
        return self.layout(parts, self.size) if len(parts) == len(self.calls) else None


def lay_out(heard: Sequence[LossCall], calls: tuple[int, ...], tokens: Tensor | None) -> Text:
    """Return calls that were chosen, in as many rows as the batch has sequences if that can be."""
    labels = [heard[i].labels for i in calls]
    total, size = sum(part.numel() for part in labels), 1
    if len(labels) == 1 and labels[0].ndim == 2:
        size = len(labels[0])
    elif tokens is not None and tokens.ndim > 1 and len(tokens) and total % len(tokens) == 0:
        size = len(tokens)
    return Text(calls, Fit.NEXT, size, _in_rows, 0)


def find_texts(
    heard: Sequence[LossCall], read: Sequence[Tensor], batch: Sequence[Tensor]
) -> list[Text]:
    """Return the calls, alone or in chunks, whose labels are text; the strongest fit alone.

    Args:
        heard: the loss calls of a step.
        read: tokens [B, T] or [T] that the model looked up.
        batch: other integers, in the batch: what equals them in place may be anything's labels.
    """
    read = with_joined(_distinct(read))
    tokens = _distinct([*read, *batch])
    found: list[Text] = []
    pending: dict[tuple[int, int, bool], list[int]] = {}
    for i, call in enumerate(heard):
        chunks = pending.setdefault((call.classes, call.ignore_index, call.values is None), [])
        chunks.append(i)
        text = _fit(heard, (i,), tokens, len(read))
        if len(chunks) > 1 and (text is None or text.fit < Fit.NEXT):
            text = _fit(heard, tuple(chunks), tokens, len(read)) or text
        if text is not None:
            found.append(text)
            if text.fit == Fit.NEXT:
                chunks.clear()
    if not found:
        texts = [*read, *_read_to_the_end(read, batch)]
        picked = (_picked(heard, tuple(calls), texts) for calls in pending.values() if calls)
        found = [text for text in picked if text is not None]
    best = max((text.fit for text in found), default=Fit.NONE)
    return [text for text in found if text.fit == best]


def _fit(
    heard: Sequence[LossCall], calls: tuple[int, ...], tokens: Sequence[Tensor], read: int
) -> Text | None:
    labels, classes = [heard[i].labels for i in calls], heard[calls[0]].classes
    best: Text | None = None
    for i, each in enumerate(tokens):
        # The first chunks of several are no text of their own; one number a sample is a class.
        only_next = len(calls) > 1 or each.ndim == 1
        for layout, size, text in _layouts(labels, each.view(-1, each.shape[-1])):
            fit = fit_of(layout(labels, size), text, classes)
            if (only_next and fit < Fit.NEXT) or (fit == Fit.SAME and i >= read):
                continue
            if fit > (Fit.NONE if best is None else best.fit):
                best = Text(calls, fit, size, layout, i)
    return best


def _layouts(labels: Sequence[Tensor], tokens: Tensor) -> Iterator[tuple[Layout, int, Tensor]]:
    total = sum(part.numel() for part in labels)
    for text in (tokens, tokens.t()):
        size, length = text.shape
        if not total or total % size or (len(labels) > 1 and total // size < length - 1):
            continue
        yield _in_rows, size, text
        if size > 1:
            yield _time_first, size, text
            if len(labels) > 1 and not any(part.numel() % size for part in labels):
                yield _in_chunks, size, text


def fit_of(labels: Tensor, tokens: Tensor, classes: int) -> Fit:
    """Return how labels [B, T'] lie in tokens [B, T]; reads the data, so it waits for a device."""
    length, after = labels.shape[1], tokens.shape[1] - labels.shape[1]
    tokens = nn.functional.pad(tokens.to(labels.device), (max(0, -after), 0), value=IGNORED)
    following = nn.functional.pad(tokens[:, 1 : length + 1], (0, after <= 0), value=IGNORED)
    same, following_ = _share(labels, tokens[:, :length]), _share(labels, following)
    # Where targets end in a token that the inputs lack, or inputs are noisy, some differ.
    enough = 0.5 if classes >= FEWEST_WORDS else 0.9
    if after <= 1 and following_ >= max(enough, same):
        return Fit.NEXT
    if after > 1 and classes >= FEWEST_WORDS and _share(labels, tokens[:, after:]) == 1:
        return Fit.END
    is_text = classes >= FEWEST_WORDS and length > 1
    return Fit.SAME if is_text and after <= 0 and same == 1 else Fit.NONE


def is_text(labels: Tensor, read: Sequence[Tensor | None]) -> bool | None:
    """Return whether labels [B, T'] are the tokens that were read, in place or the ones after.

    None: nothing was read that could be compared, or no label counts. Waits for the device.
    """
    tokens = [t for t in read if t is not None and t.ndim == 2 and len(t) == len(labels)]
    if labels.ndim != 2 or not tokens or not bool((labels != IGNORED).any()):
        return None
    return any(
        fit_of(labels, t, FEWEST_WORDS) or _share(labels, t[:, : labels.shape[1]]) >= 0.5
        for t in tokens
        if t.shape[1] >= labels.shape[1] or fit_of(labels, t, FEWEST_WORDS)
    )


def _share(labels: Tensor, tokens: Tensor) -> float:
    """Return the share of the counted labels that equal the tokens."""
    counted = labels != IGNORED
    equal = (labels == tokens) & counted
    return float(equal.sum() / counted.sum().clamp(min=1))


def _picked(
    heard: Sequence[LossCall], calls: tuple[int, ...], read: Sequence[Tensor]
) -> Text | None:
    """Return the calls as one sequence if their labels are a selection of what was read."""
    labels = torch.cat([heard[i].labels.flatten() for i in calls])
    picked = labels[labels != IGNORED].tolist()
    if len(picked) < 8 or heard[calls[0]].classes < FEWEST_WORDS:
        return None  # too few to tell from chance
    for i, text in enumerate(read):
        rest = iter(text[..., 1:].flatten().tolist())
        # "in" goes on from where the label before was found.
        if len(picked) < text.numel() and all(label in rest for label in picked):
            return Text(calls, Fit.PICKED, 1, _one_row, i)
    return None


def with_joined(read: Sequence[Tensor]) -> list[Tensor]:
    """Return what was read, and what was read in parts of equal length as one."""
    lengths: dict[int, list[Tensor]] = {}
    for each in read:
        if each.ndim == 2:
            lengths.setdefault(each.shape[1], []).append(each)
    return [*read, *(torch.cat(parts) for parts in lengths.values() if len(parts) > 1)]


def _read_to_the_end(read: Sequence[Tensor], batch: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield what was read with the token after it, which is predicted only, from the batch."""
    for text, other in itertools.product(read, batch):
        if text.ndim == other.ndim == 2 and len(text) == len(other):
            if other.shape[1] == text.shape[1] and bool((other[:, :-1] == text[:, 1:]).all()):
                yield torch.cat([text[:, :1], other], 1)
            elif other.shape[1] == text.shape[1] + 1 and bool((other[:, :-1] == text).all()):
                yield other


def _distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors [B, T] or [T] without repetition, and without numbers of positions."""
    found: list[Tensor] = []
    for each in tensors:
        if each.ndim not in (1, 2) or not each.numel():
            continue
        positions = torch.arange(each.shape[-1], device=each.device).expand_as(each)
        others = (one for one in found if one.shape == each.shape)
        if not any(bool((each == one.to(each.device)).all()) for one in (positions, *others)):
            found.append(each)
    return found
