"""What a validation step without logits and labels is answered with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

FEWEST_WORDS = 32
"""Fewer classes are taken for a vocabulary only where something shows that they are."""


class NoLanguageModel(ValueError):
    """A validation step showed no language model: no logits [B, T, V] with labels [B, T]."""


def nothing_found(outputs: Any, has_models: bool, refused: str) -> NoLanguageModel:
    """Return the error for a step without logits, with what the user can do.

    Args:
        outputs: of validation_step.
        has_models: whether the module holds transformers language models.
        refused: why a call with labels was not used.
    """
    models = "no transformers language model was found inside it"
    if has_models:
        models = "the transformers model inside it gave no logits for tokens of this batch"
    return NoLanguageModel(
        "LScore found no logits and labels in this validation batch. validation_step returned "
        f"{describe(outputs)}, and {models}.{refused} Four ways out:\n"
        "  1. keep the transformers model as an attribute of the LightningModule and call it "
        "in validation_step, so that it returns logits;\n"
        '  2. return {"logits": logits, "labels": labels} from validation_step;\n'
        "  3. LScore(logits_and_labels=function) with function(module, outputs, batch) -> "
        "(logits, labels);\n"
        "  4. LScore(from_loss=True), if validation_step returns the mean loss of its counted "
        "labels and nothing else is in it, such as label smoothing or an auxiliary term."
    )


def refuse_classes(logits: Tensor, read: Sequence[Tensor]) -> None:
    """Raise the error for logits of classes, which belong to no language model.

    Args:
        logits: found beside labels that nothing shows to be text.
        read: tokens that the model read; larger ones than there are classes are not predicted.
    """
    classes = logits.shape[-1]
    few = logits.ndim == 3 and classes < FEWEST_WORDS
    others = bool(read) and all(bool((tokens >= classes).any()) for tokens in read)
    if logits.ndim == 2 or few or others:
        raise NoLanguageModel(
            f"expected logits [batch, time, vocabulary] of {FEWEST_WORDS} words or more, or labels "
            f"that continue what the model read, got logits {list(logits.shape)} and labels that do"
            " not. If they are those of a language model, say so by "
            "LScore(labels_are_shifted=True) or False."
        )


def describe(outputs: Any) -> str:
    """Describe what a step or a function returned."""
    if isinstance(outputs, Tensor):
        return f"a tensor {list(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return f"a {type(outputs).__name__} with {', '.join(map(repr, outputs)) or 'nothing in it'}"
    if isinstance(outputs, (tuple, list)):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    return "None" if outputs is None else f"a {type(outputs).__name__}"
