"""Ways to logits and labels of a validation step that has ended; each returns None if it fails.

:mod:`~lightning_lscore.heldout.capture` lists them in the order in which they are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..model.batch import find_tokens, integer_tensors
from ..model.sharded import whole
from .listening import Call
from .nothing_found import describe
from .shift_evidence import alignment

LogitsAndLabels = Callable[[Any, Any, Any], tuple[Tensor, Tensor]]
"""(module, outputs, batch) -> logits [B, T, V] and labels [B, T]."""


class Found(NamedTuple):
    """Labels, and the logits or NLL that belong to them."""

    source: str
    """Where they were found, in words."""
    values: Tensor
    """Logits, or a scalar: the mean NLL of the labels that count."""
    labels: Tensor


def by_function(function: LogitsAndLabels | None, *step: Any) -> Found | None:
    """The user's function of (module, outputs, batch).

    Raises:
        ValueError: if it returns anything but two tensors.
    """
    if function is None:
        return None
    found = function(*step)
    if not (isinstance(found, tuple) and [isinstance(x, Tensor) for x in found] == [True] * 2):
        raise ValueError(
            "LScore(logits_and_labels=...): expected the function to return the tensors "
            f"(logits, labels), got {describe(found)}."
        )
    return Found("the given function", *found)


def by_outputs(outputs: Any) -> Found | None:
    """Logits and labels that validation_step returns."""
    logits, labels = _in_outputs(outputs)
    if logits is None or labels is None:
        return None
    return Found("logits and labels from validation_step", logits, labels)


def by_logits(outputs: Any, batch: Any, ignore_index: int) -> Found | None:
    """Logits that validation_step returns, with labels from the batch."""
    logits, _ = _in_outputs(outputs)
    if logits is None:
        return None
    how, labels = _find_labels(batch, find_tokens(batch), ignore_index)
    if labels is not None and labels.shape[1:] == (logits.shape[1] + 1,):
        labels = labels[:, 1:]  # the step cut its tokens into inputs and labels
    if labels is None or labels.shape != logits.shape[:-1]:
        return None
    return Found(f"logits from validation_step, {how}", logits, labels)


def by_call(call: Call | None, batch: Any, ignore_index: int) -> Found | None:
    """A call of a language model without labels; they are looked for in the batch."""
    if call is None or call.logits is None:
        return None
    how, labels = _find_labels(batch, call.tokens, ignore_index)
    if labels is None or (call.shifted and labels is call.tokens):
        return None
    return Found(f"forward of {type(call.model).__name__}, {how}", call.logits, labels)


def by_loss(outputs: Any, batch: Any, ignore_index: int) -> Found | None:
    """The mean loss that validation_step returns."""
    loss = returned_loss(outputs)
    if loss is None:
        return None
    given = isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor)
    _, labels = _find_labels(batch, None if given else find_tokens(batch), ignore_index)
    if labels is None:
        return None
    how = "mean loss of validation_step x counted labels; wrong if the loss holds auxiliary"
    return Found(f"{how} terms or smoothing", loss.detach().view(()), labels)


def returned_loss(outputs: Any) -> Tensor | None:
    """Return the loss in what validation_step returned."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _in_outputs(outputs: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return logits, and labels if present: by name, or from a tuple with each other and a loss."""
    if isinstance(outputs, (tuple, list)) and not hasattr(outputs, "_fields"):
        tensors = [x for x in outputs if isinstance(x, Tensor)]
        logits = [x for x in tensors if x.is_floating_point() and x.ndim >= 3]
        labels = [x for x in tensors if x.ndim and not x.is_floating_point()]
        losses = [x for x in tensors if not x.ndim]
        kinds = len(logits), len(labels), len(losses)
        if kinds not in ((1, 1, 0), (1, 0, 1), (1, 1, 1)) or sum(kinds) != len(outputs):
            return None, None
        return logits[0], labels[0] if labels else None
    named = outputs if isinstance(outputs, Mapping) else {}
    found = [named.get(name, getattr(outputs, name, None)) for name in ("logits", "labels")]
    first, second = (x if isinstance(x, Tensor) and x.ndim else None for x in found)
    return first, second


def _find_labels(batch: Any, tokens: Tensor | None, ignore_index: int) -> tuple[str, Tensor | None]:
    """Return where labels of the tokens that a model read were found, and the labels."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, Tensor) and (tokens is None or labels.shape == tokens.shape):
        return "labels from the batch", labels
    if tokens is None:
        return "", None
    for other in integer_tensors(batch):
        if other.shape != tokens.shape or other is tokens:
            continue
        shifted = alignment(other, tokens, ignore_index)
        if shifted:  # (x, y) with y the tokens after x
            return "shifted labels found in the batch", other
        if shifted is False and bool((whole(other) < 0).any()):
            return "labels found in the batch", other
    return "the input tokens as labels", tokens
