"""What a step leaves out of a loss that it reduces itself, ``reduction="none"``.

Such a loss is often multiplied by a mask, which no loss call shows. What was left out is proved by
a loss that the step returned or logged: it is the mean, or the sum, of what was kept. Tried are, in
this order: nothing is left out; the masks in the batch, those that are named so first; labels equal
to the padding index of the embedding; labels equal to one that ends a row. Without a proof a mask
of the batch is taken, or the padding, and that is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.leaves import leaves
from .loss_call import IGNORED

# From the most telling name on.
_NAMES = ("loss_mask", "label_mask", "labels_mask", "target_mask", "completion_mask")
_CLOSE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
_ENDS = 8  # labels at the ends of rows that are tried
_SETTLES = (
    "Return the loss from validation_step, leave ignored labels to cross_entropy, or say what "
    "counts with LScore(logits_and_labels=function)."
)


class Kept(NamedTuple):
    """Labels that ignore what was left out."""

    labels: Tensor
    left_out: str = ""
    """What it is, in words."""
    doubt: str = ""
    """A sentence, where nothing proves it."""


def without_masked(
    values: Tensor, labels: Tensor, batch: Any, losses: Sequence[Any], padding: int
) -> Kept:
    """Return labels [B, T] that ignore what a step left out of its loss; waits for the device.

    Args:
        values: of the loss, [B, T], before it was reduced.
        labels: one for each.
        batch: of the step.
        losses: numbers that the step returned or logged.
        padding: index of the embedding's padding, or -1.
    """
    counted = labels != IGNORED
    known = [number for loss in losses if (number := _number(loss)) is not None]
    first: tuple[str, Tensor] | None = None
    for name, mask, needs_proof in _masks(batch, labels, padding):
        keep = mask & counted
        if name and bool((keep == counted).all()):
            continue
        if any(_makes(number, close, values, keep) for number, close in known):
            return Kept(labels.masked_fill(~keep, IGNORED), name)
        if name and first is None and not needs_proof:
            first = name, keep
    if first is not None:
        name, keep = first
        doubt = f"took {name} for what the step leaves out of its loss; no loss that it returned "
        doubt += f"or logged proves it. {_SETTLES}"
        return Kept(labels.masked_fill(~keep, IGNORED), name, doubt)
    doubt = "counts all labels of a loss that the step reduces itself, and no loss that it "
    doubt += f"returned or logged is their mean: something may be left out of it. {_SETTLES}"
    return Kept(labels, "", doubt if known else "")


def _masks(batch: Any, labels: Tensor, padding: int) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield what may have been left out, what is kept [B, T], and whether that needs a proof."""
    yield "", torch.ones_like(labels, dtype=torch.bool), True
    found: dict[str, Tensor] = {}
    for leaf in leaves(batch):
        mask, length = leaf.tensor, labels.shape[1]
        if mask.ndim != 2 or mask.shape not in ((len(labels), length), (len(labels), length + 1)):
            continue
        if bool(((mask == 0) | (mask == 1)).all()):
            found[leaf.name or str(leaf)] = mask.to(labels.device)[:, -length:] != 0
    for name in sorted(found, key=lambda name: name not in _NAMES):
        yield f"the mask {name} of the batch", found[name], False
    if padding >= 0:
        yield f"labels of {padding}, the padding index", labels != padding, False
    for end in sorted(set(labels[:, -1].tolist()))[:_ENDS]:
        yield f"labels of {end}", labels != end, True


def _number(loss: Any) -> tuple[float, float] | None:
    """Return the number and how near another of its dtype is equal."""
    if isinstance(loss, Tensor):
        close = _CLOSE.get(loss.dtype, 2e-5)
        return (float(loss.detach()), close) if loss.numel() == 1 else None
    return (float(loss), 2e-5) if isinstance(loss, float) else None


def _makes(number: float, close: float, values: Tensor, keep: Tensor) -> bool:
    """Whether the mean, its exponential or the sum of what is kept is the number."""
    total, count = float((values * keep).sum()), int(keep.sum())
    mean = total / max(1, count)
    candidates = (mean, total, math.exp(min(mean, 700.0)))
    return any(math.isclose(number, x, rel_tol=close, abs_tol=close) for x in candidates)
