"""transformers models inside a module."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from torch import nn


def language_models(module: nn.Module) -> list[Any]:
    """Return the outermost transformers models in ``module`` that predict the next token."""
    return _outermost_models(module, _predicts_next_token)


def token_models(module: nn.Module) -> list[Any]:
    """Return those of the outermost transformers models in ``module`` that read tokens."""
    return [model for model in _outermost_models(module) if _reads_tokens(model)]


def _outermost_models(
    module: nn.Module, fits: Callable[[Any], bool] = lambda model: True
) -> list[Any]:
    """Return the transformers models that fit and lie inside no other that fits.

    If transformers was never imported there are none, so it is not imported here either.
    """
    # Whoever has a model has imported this module; an attribute of transformers would import it.
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is None:
        return []
    found: list[Any] = []
    inside: set[nn.Module] = set()
    for candidate in module.modules():  # parents come before their children
        if candidate in inside or not isinstance(candidate, transformers.PreTrainedModel):
            continue
        if fits(candidate):
            inside.update(candidate.modules())
            found.append(candidate)
    return found


def _predicts_next_token(model: Any) -> bool:
    fills_masks = re.search("MaskedLM|ForPreTraining", type(model).__name__)
    return model.get_output_embeddings() is not None and fills_masks is None


def _reads_tokens(model: Any) -> bool:
    try:
        inputs = model.get_input_embeddings()
    except NotImplementedError:  # as models of images and sounds do
        return False
    parts = inputs.modules() if isinstance(inputs, nn.Module) else ()
    return any(isinstance(part, nn.Embedding) for part in parts)  # adapters may wrap it
