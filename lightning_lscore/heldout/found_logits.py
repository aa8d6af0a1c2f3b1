"""Logits, or a mean loss, and labels that were found after the step, by one of ``ways``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..model.batch import find_tokens, integer_tensors
from ..model.leaves import leaves
from .fit import with_joined
from .is_text import check_words_are_read
from .labels import Labels
from .loss_call import LossCalls
from .shift_evidence import of_size
from .step import Step
from .ways import Found


def hand_on_found(step: Step, found: Found, loss: Any, losses: LossCalls, known: Labels) -> str:
    """Hand on what was found, and return how, in words.

    Args:
        step: that has ended.
        found: its logits, or mean loss, and labels.
        loss: that the step returned.
        losses: what was heard in it.
        known: what is known about the run's labels.
    """
    values, call = found.values, step.call
    calls = of_size(losses.heard, found.labels)
    labels, ignored = known.ignored.mark(found.labels, calls)
    read = [None if call is None else call.tokens, *with_joined(losses.read)]
    read += [_tokens_beside(step.batch, found.labels), *_longer(step.batch, found.labels)]
    known_loss = loss if values.ndim else None
    shift = known.alignment.of_found(values, labels, read, call, calls, known_loss)
    if values.ndim and not known.declared:
        guessed = known.alignment.guessed
        known.is_text.check(known.canonical(labels), read, values, losses.read, guessed)
        if not (losses.read or call or losses.hears_less):
            check_words_are_read(found.labels, step.batch)
    labels = known.shifted(labels, shift.shifted)
    if stated := shift.stated and len(calls) == 1:
        labels = known.ignored.as_stated(labels, calls[0])
    step.hand_on(
        values,
        labels,
        call,
        is_nll=values.ndim == 0,
        came_shifted=shift.shifted,
        stated=stated,
    )
    return f"{found.source}; {shift.how}; {ignored}"


def _tokens_beside(batch: Any, labels: Tensor) -> Tensor | None:
    """Return the batch's tokens, unless they are the labels and what is read are features."""
    tokens = find_tokens(batch)
    if tokens is None or tokens.shape != labels.shape or tokens.data_ptr() != labels.data_ptr():
        return tokens
    features = any(one.tensor.is_floating_point() and one.tensor.ndim > 1 for one in leaves(batch))
    return None if features else tokens


def _longer(batch: Any, labels: Tensor) -> list[Tensor]:
    """Return the batch's integers of which labels [B, T] may be a part: longer ones."""
    return [t for t in integer_tensors(batch) if t.ndim == 2 and t.shape[1] > labels.shape[-1]]
