"""What shows how labels are shifted against logits; ``alignment`` asks in its order.

Each function looks at one thing and answers whether label t belongs to logits t already (True), is
to be moved by one (False), or that it cannot tell (None).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.sharded import is_sharded, whole
from .loss_call import IGNORED, LossCall
from .nll import token_nll

# Decoders of transformers whose own loss compares label t with logits t (5.x, read in their code).
_IN_PLACE = re.compile(
    r"(Bart|BigBirdPegasus|Blenderbot|BlenderbotSmall|CpmAnt|MBart|Marian|Mvp|PLBart|Pegasus"
    r"|ProphetNet|TrOCR|Whisper)ForCausalLM|(XLNetLMHead|FlaubertWithLMHead|XLMWithLMHead)Model"
)
# What rounding may change of a mean loss that is computed in this dtype.
_ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1e-2}


def of_losses(losses: Sequence[LossCall], labels: Tensor, ignore_index: int) -> bool | None:
    """Return whether a loss call compares these labels [B, T] as they are (True) or moved by one.

    None: none of them is of these labels, or both fit.
    """
    labels = whole(labels)
    if labels.ndim != 2:
        return None
    for calls in (*([loss] for loss in reversed(losses)), losses if len(losses) > 1 else ()):
        stated = torch.cat([loss.labels.flatten() for loss in calls]) if calls else labels[:0]
        moved, size = shift(labels, ignore_index), labels.numel()
        forms = []
        if len(stated) == labels[:, 1:].numel():
            forms.append((False, labels[:, 1:]))
        elif len(stated) and len(stated) % size == 0:  # several streams have the same labels
            forms += [(True, labels), (False, moved)]
        fits = [shifted for shifted, form in forms if _agree(stated[: form.numel()], form)]
        if len(fits) == 1:
            return fits[0]
    return None


def of_size(losses: Sequence[LossCall], labels: Tensor) -> list[LossCall]:
    """Return the loss calls, or chunks of one, that have as many labels as these, or one less."""
    if labels.ndim != 2 or not labels.numel():
        return [one for one in losses if one.labels.numel() == labels.numel()]

    def fits(size: int) -> bool:
        return size == labels[:, 1:].numel() or (size > 0 and size % labels.numel() == 0)

    found = [one for one in losses if fits(one.labels.numel())]
    return found or (list(losses) if fits(sum(sizes(losses))) else [])


def _agree(stated: Tensor, labels: Tensor) -> bool:
    counted = stated != IGNORED
    return bool(counted.any() and ((stated == labels.flatten().to(stated.device)) | ~counted).all())


def of_value(loss: Any, logits: Tensor | None, labels: Tensor, ignore_index: int) -> bool | None:
    """Return whether a mean loss is that of the labels as they are (True), or moved by one.

    None: neither, for example because something else is in it. Waits for the device.
    """
    if not isinstance(loss, Tensor) or not isinstance(logits, Tensor) or loss.numel() != 1:
        return None
    if is_sharded(logits) or is_sharded(labels) or labels.shape != logits.shape[:-1]:
        return None
    value, off = float(loss.detach()), []
    for target in (labels, shift(labels, ignore_index)):
        nll, count = token_nll(logits, target.to(logits.device), ignore_index)
        off.append(abs(float(nll / count) - value))
    if not math.isfinite(sum(off)):
        return None
    # As near as rounding, and far from the other: auxiliary terms must not look so by chance.
    near = _ROUNDING.get(loss.dtype, 2e-5) * max(1.0, abs(value))
    in_place = min(off) == off[0]
    return in_place if min(off) < near and min(off) < 0.1 * max(off) else None


def of_class(model: Any) -> bool | None:
    """Return whether the loss of the model's class, or of one it inherits from, moves no labels."""
    classes = type(model).__mro__
    if any(_IN_PLACE.fullmatch(each.__name__) for each in classes):
        return True
    known = any(each.__module__.startswith("transformers.models.") for each in classes)
    return False if known else None


def sizes(losses: Sequence[LossCall]) -> tuple[int, ...]:
    return tuple(loss.labels.numel() for loss in losses)


def shift(labels: Tensor, ignore_index: int) -> Tensor:
    """Return labels such that label t is the token after input t."""
    # Labels are small, logits are not.
    return nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)


def alignment(labels: Any, tokens: Any, ignore_index: int = -100) -> bool | None:
    """Return whether labels [B, T] are shifted against the input tokens [B, T or T + 1].

    True: label t is token t + 1. False: label t is token t. None: both or neither fit.
    Negative and ignored labels fit anything, and so does a last label that the tokens lack, an end
    of text, if labels are shifted. Reads the data, so it waits for a device.
    """
    labels, tokens = whole(labels), whole(tokens)
    if labels.ndim != 2 or tokens.ndim != 2 or labels.shape[0] != tokens.shape[0]:
        return None
    length = labels.shape[1]
    if tokens.shape[1] - length not in (0, 1):
        return None

    def equal(start: int) -> bool:
        other = tokens[:, start : start + length]
        mine = labels[:, : other.shape[1]]
        return bool(((mine == other) | (mine < 0) | (mine == ignore_index)).all())

    not_shifted, shifted = equal(0), equal(1)
    if not (not_shifted or shifted):
        return True if _continue(labels, tokens[:, 1:], ignore_index) else None
    return None if not_shifted == shifted else shifted


def _continue(labels: Tensor, after: Tensor, ignore_index: int) -> bool:
    """Whether all labels but the last of each sequence, an end of text, are the tokens after."""
    counted = (labels >= 0) & (labels != ignore_index)
    inner = counted & (counted.flip(1).cumsum(1).flip(1) > 1)
    inner = inner[:, : after.shape[1]]
    return bool(inner.any() and ((labels[:, : after.shape[1]] == after) | ~inner).all())
