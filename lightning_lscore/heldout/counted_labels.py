"""Which labels count: neither padding nor samples that a sampler repeats.

A token counts if its label does and neither it nor the one before it is padding. Where documents
are packed into one sequence, the first token of each counts as well, unless its label is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..model.padding import of_tokens
from ..model.sharded import whole


def ignore_padding(
    labels: Tensor,
    masks: Sequence[Any],
    ignore_index: int,
    tokens: Tensor | None = None,
) -> Tensor:
    """Return shifted labels [B, T] that ignore padding.

    Args:
        labels: label t is token t + 1.
        masks: attention masks [B, T], or [B, T + 1] where the step cut its tokens into two; the
            first one that fits the labels' shape is used.
        ignore_index: label of the positions that are not counted.
        tokens: of the mask. Given for labels that came shifted: they may hold the end of a text,
            where the mask has padding, and where they ignore all padding they say it themselves.
    """
    for mask in masks:
        text = _text(mask, labels)
        if text is None:
            continue
        here, after = (part.to(labels.device) for part in text)
        counts = here & after
        if tokens is not None and tokens.shape == mask.shape:
            target = nn.functional.pad(tokens[:, 1:], (0, 1), value=ignore_index)
            counts = here & (after | (labels != target[:, : labels.shape[1]]))
            says_so = (here | (labels == ignore_index)).all(1) & ~here.all(1)
            counts = counts | says_so[:, None]
        return labels.masked_fill(~counts, ignore_index)
    return labels


def _text(mask: Any, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return where token t and token t + 1 are no padding, [B, T]; None for a mask of no fit."""
    mask = whole(mask)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or labels.ndim != 2:
        return None
    text, (b, t) = of_tokens(mask) != 0, labels.shape
    if text.shape == (b, t):  # only the labels know what came after the last token
        text = nn.functional.pad(text, (0, 1), value=True)
    return (text[:, :-1], text[:, 1:]) if text.shape == (b, t + 1) else None


def ignore_repeated(
    labels: Tensor, repeated: int, tokens: Tensor | None, ignore_index: int
) -> Tensor:
    """Return labels [B, ...] that ignore the samples at the end that a sampler repeats.

    Args:
        labels: of the whole batch; those of a part stay as they are, since a step that feeds its
            batch in parts does not say which one holds the repeated samples.
        repeated: samples at the end of the batch.
        tokens: of the whole batch, if they are known.
        ignore_index: label of the positions that are not counted.
    """
    if not repeated or (tokens is not None and len(tokens) != len(labels)):
        return labels
    labels = labels.clone()
    labels[max(0, len(labels) - repeated) :] = ignore_index
    return labels
