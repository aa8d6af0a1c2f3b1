"""What a step leaves out of a loss that it reduces itself, ``reduction="none"``.

Such a loss is usually multiplied by a mask, which no loss call shows. A mask is taken for the one
that was used if it makes the loss that the step returned; without that value, one in the batch that
is named or shaped like a mask of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .loss_call import IGNORED

# From the most telling name on.
_NAMES = ("loss_mask", "label_mask", "labels_mask", "target_mask", "completion_mask")
_CLOSE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}


def without_masked(
    nll: Tensor, labels: Tensor, batch: Any, loss: Any, padding: int
) -> tuple[Tensor, str, str]:
    """Return labels that ignore what a mask leaves out, a remark, and a doubt or "".

    Waits for the device.

    Args:
        nll: [B, T], nats.
        labels: [B, T].
        batch: of the step.
        loss: that the step returned, if it did.
        padding: index of the embedding's padding, or -1.
    """
    counted = labels != IGNORED
    masks = [("", counted), *_masks(batch, labels)]
    if padding >= 0:
        masks.append((f"padding is {padding}, as in the embedding", labels != padding))
    masks = [(name, keep & counted) for name, keep in masks]
    masks = masks[:1] + [(n, keep) for n, keep in masks[1:] if bool((keep != counted).any())]
    if len(masks) == 1:
        return labels, "", ""
    known = isinstance(loss, Tensor) and loss.numel() == 1
    proved = [one for one in masks if known and _makes(loss, nll, one[1])]
    name, keep = proved[0] if proved else masks[1]
    doubt = ""
    if not proved:
        doubt = (
            f"found a loss that the step reduces itself, and took {name!r} for what it leaves out. "
            "No returned loss proves it. Return the loss from validation_step, or say what counts "
            "with LScore(logits_and_labels=function)."
        )
    return (
        labels.masked_fill(~keep, IGNORED),
        f", without masked labels ({name})" * bool(name),
        doubt,
    )


def _masks(batch: Any, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and masks [B, T] that a batch has for these labels."""
    found: dict[str, Tensor] = {}
    for name, tensor in _named(batch):
        if tensor.ndim == 2 and tensor.numel() and bool(((tensor == 0) | (tensor == 1)).all()):
            found[name or "a tensor of 0 and 1 in the batch"] = tensor.to(labels.device) != 0
    first = [name for name in _NAMES if name in found]
    for name in (*first, *(name for name in found if name not in first)):
        mask, length = found[name], labels.shape[1]
        if len(mask) == len(labels) and mask.shape[1] in (length, length + 1):
            yield name, mask[:, -length:]


def _named(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _named(value, str(key))
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _named(value, name)


def _makes(loss: Tensor, nll: Tensor, keep: Tensor) -> bool:
    """Whether the mean, or the sum, of what is kept is the loss."""
    value = float(loss.detach())
    total, count = float((nll * keep).sum()), max(1, int(keep.sum()))
    close = _CLOSE.get(loss.dtype, 2e-5)
    return any(math.isclose(value, x, rel_tol=close, abs_tol=close) for x in (total / count, total))
