"""NLL of a language model that returns no logits, from its hidden states."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..model.sharded import is_sharded
from .listening import Call
from .nll import row_nll

_BUFFER = 32 << 20  # bytes of the logits that are made at a time where a model makes none
# What models do to their logits behind the output layer: Gemma 2, Cohere, Granite, Falcon-H1, ...
_SCALES = re.compile(
    r"((final|output)_)?logits?_(soft_?cap|scal)\w*|(lm_head|output)_multiplier|softcap"
    r"|unpadded_vocab_size"
)


def hidden_nll(call: Call, labels: Tensor, ignore_index: int) -> Tensor:
    """NLL [B, T] of a model that makes no logits, from its hidden states, some rows at a time.

    Such a model has a loss that is fused with the output layer (as that of the Liger kernels),
    lest logits fill the memory; so they do not here. Waits for the device.

    Args:
        call: with labels and without logits.
        labels: [B, T], of which label t belongs to hidden state t, as the model's loss counts them.
        ignore_index: label of the positions that are not counted.

    Raises:
        ValueError: where hidden states times output layer are not the logits.
    """
    head, hidden = call.model.get_output_embeddings(), call.hidden
    reason = None
    if not isinstance(hidden, Tensor) or hidden.shape[:-1] != labels.shape:
        reason = "its base model gives no state for each label"
    elif not isinstance(head, nn.Linear) or is_sharded(head.weight):
        reason = f"its output layer is no nn.Linear in one piece, but a {type(head).__name__}"
    elif scale := _scale(call.model.config):
        reason = f"it changes its logits behind the output layer ({scale})"
    else:
        with torch.no_grad():
            nll = _by_rows(hidden, labels.to(hidden.device), head, ignore_index)
        mean, loss = float(nll.sum() / (labels != ignore_index).sum()), call.loss
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            reason = "without its loss that cannot be checked"
        elif math.isfinite(mean) and not math.isclose(mean, float(loss), rel_tol=0.01):
            reason = f"that makes a mean loss of {mean:.4g}, and its own is {float(loss):.4g}"
    if reason is not None:
        raise ValueError(
            f"The {type(call.model).__name__} returned no logits, and they cannot be made from its "
            f"hidden states: {reason}."
        )
    return nll


def _by_rows(hidden: Tensor, labels: Tensor, head: nn.Linear, ignore_index: int) -> Tensor:
    rows = max(1, _BUFFER // (4 * head.weight.shape[0]))
    linear = partial(nn.functional.linear, weight=head.weight, bias=head.bias)
    states, targets = hidden.to(head.weight.dtype).flatten(0, -2), labels.flatten()
    parts = zip(torch.split(states, rows), torch.split(targets, rows), strict=True)
    nll = [row_nll(linear(h), t, ignore_index) for h, t in parts]
    return torch.cat(nll).view(labels.shape)


def _scale(config: Any) -> str:
    """The first setting that says that logits are more than the output of a linear layer."""
    for name, value in config.get_text_config().to_dict().items():
        if _SCALES.fullmatch(name) and value not in (None, 0, 1):
            return f"{name}={value}"
    return ""
