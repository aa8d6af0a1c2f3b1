"""Which loss calls of a step are of the batch's own text, and how their rows lie in it.

A loss call has rows and labels, usually flattened: [B·T], one of several chunks, time first. It is
a language model's if its labels continue the tokens that were read: each is the token after the
one at its row. That is looked up once for each pattern of sizes, since looking waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .fit import Fit, distinct, fit_of, in_steps, read_to_the_end, share_of_next, with_joined
from .loss_call import IGNORED, LossCall
from .nothing_found import FEWEST_WORDS

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
    single = distinct([*in_steps(read), *read])
    read = with_joined(single)
    tokens = distinct([*read, *batch])
    joined = {id(text) for text in read[len(single) :]}
    own = [i for i, text in enumerate(tokens) if id(text) not in joined]
    found: list[Text] = []
    groups: dict[tuple[int, int, bool], list[int]] = {}
    for i, call in enumerate(heard):
        groups.setdefault((call.classes, call.ignore_index, call.values is None), []).append(i)
    for key, calls in groups.items():
        groups[key] = _find_in(heard, calls, tokens, len(read), own, found)
    if not found:
        texts = [*read, *read_to_the_end(read, batch)]
        picked = (_picked(heard, tuple(calls), texts) for calls in groups.values() if calls)
        found = [text for text in picked if text is not None]
    best = max((text.fit for text in found), default=Fit.NONE)
    return [text for text in found if text.fit == best]


def _find_in(
    heard: Sequence[LossCall],
    calls: Sequence[int],
    tokens: Sequence[Tensor],
    read: int,
    own: Sequence[int],
    found: list[Text],
) -> list[int]:
    """Add the texts among calls of one kind: all as one, else each alone or with those before it.

    Args:
        heard: the loss calls of a step.
        calls: those of one kind.
        tokens: texts of which their labels may be.
        read: so many of them were read, the others are in the batch.
        own: those that are not joined of several.
        found: the texts until now.

    Returns:
        The calls that are left since the last text.
    """
    whole = _in_one(heard, tuple(calls), [(i, tokens[i]) for i in own]) if len(calls) > 1 else None
    if whole is not None:
        found.append(whole)
        return []
    chunks: list[int] = []
    for i in calls:
        chunks.append(i)
        text = _fit(heard, (i,), tokens, read)
        if text is not None and text.fit == Fit.END and len(calls) > 1:
            text = None  # of many calls, some may end as a text does
        if len(chunks) > 1 and (text is None or text.fit < Fit.NEXT):
            text = _fit(heard, tuple(chunks), tokens, read) or text
        if text is not None:
            found.append(text)
            if text.fit == Fit.NEXT:
                chunks.clear()
    return chunks


def _in_one(
    heard: Sequence[LossCall], calls: tuple[int, ...], texts: Sequence[tuple[int, Tensor]]
) -> Text | None:
    """Return the calls as one text if each of their labels is the token after its own.

    The last one may be a token that the inputs lack, if the calls are of equal size: then none of
    them is about something else.
    """
    labels = [heard[i].labels for i in calls]
    alike = len({part.numel() for part in labels}) == 1
    for i, each in texts:
        for layout, size, text in _layouts(labels, each.view(-1, each.shape[-1])):
            laid = layout(labels, size)
            lacks = text.shape[1] - laid.shape[1] == 0 and alike
            known = laid[:, :-1] if lacks else laid
            if (lacks or text.shape[1] > laid.shape[1]) and share_of_next(known, text) == 1:
                return Text(calls, Fit.NEXT, size, layout, i)
    return None


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
        if length < 2 or not total or total % size:
            continue  # nothing continues a single token
        if len(labels) > 1 and total // size < length - 1:
            continue
        yield _in_rows, size, text
        if size > 1:
            yield _time_first, size, text
            if len(labels) > 1 and not any(part.numel() % size for part in labels):
                yield _in_chunks, size, text


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
