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

_BUFFER = 32 << 20  # bytes of logits that exist at a time
# Settings of models that change their logits after the output layer: Gemma 2, Cohere, Granite, ...
_SCALES = re.compile(
    r"((final|output)_)?logits?_(soft_?cap|scal)\w*|(lm_head|output)_multiplier|softcap"
    r"|unpadded_vocab_size"
)


def hidden_nll(call: Call, labels: Tensor, ignore_index: int) -> Tensor:
    """Return the NLL [B, T] of a model that makes no logits, from its hidden states.

    Its loss is fused with the output layer (by Liger kernels, for example) because logits would
    fill the memory. Here too they exist for only some rows at a time. Waits for the device.

    Args:
        call: with labels and without logits.
        labels: [B, T]; label t belongs to hidden state t.
        ignore_index: label of the positions that are not counted.

    Raises:
        ValueError: if hidden states times output layer are not the model's logits.
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
    """Return the first setting by which logits differ from the linear layer's output."""
    for name, value in config.get_text_config().to_dict().items():
        if _SCALES.fullmatch(name) and value not in (None, 0, 1):
            return f"{name}={value}"
    return ""
