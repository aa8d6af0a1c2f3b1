"""A call of a causal language model, for the logits of the next tokens and no more."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


def next_token_logits(model: nn.Module, inputs: Tensor, rows: int) -> Any:
    """Return what a model gives for inputs [B, T]: logits [B, T, V], or those of the last rows.

    Saves work if the model has arguments for it: the last ``rows`` only, no cache. What is no
    tensor is returned as it is.
    """
    names = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": rows, "num_logits_to_keep": rows, "use_cache": False}
    output = model(inputs, **{name: value for name, value in options.items() if name in names})
    return getattr(output, "logits", output)
