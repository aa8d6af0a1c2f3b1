"""A language model that is called with labels: its own logits, loss call or hidden states count."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..model.sharded import whole
from .hidden_nll import hidden_nll
from .labels import Labels
from .listening import Call
from .loss_call import LossCall
from .own_loss import OwnLoss
from .shift_evidence import of_size
from .step import Step, is_of_rows


def hand_on_call(
    step: Step,
    call: Call,
    labels: Tensor,
    losses: Sequence[LossCall],
    known: Labels,
    own_loss: OwnLoss,
) -> str | None:
    """Hand on a call and its labels; return how, in words, None if it does not show its logits.

    Args:
        step: in which it was heard.
        call: with labels.
        labels: those of the call.
        losses: heard in its forward pass.
        known: what is known about the run's labels.
        own_loss: lays out loss calls.

    Raises:
        ValueError: if another model was called with labels in the step.
    """
    if step.labelled not in (None, call.model):
        raise ValueError(
            "expected one language model to be called with labels in a validation step, "
            f"got a {type(step.labelled).__name__} and another, a {type(call.model).__name__}."
            " Say which one counts with LScore(logits_and_labels=function)."
        )
    name, labels = type(call.model).__name__, whole(labels)
    labels, ignored = known.ignored.mark(labels, of_size(losses, labels), own=False)
    shifted, how = known.alignment.of_call(call, labels, losses)
    fits = call.logits is not None and is_of_rows(labels, call.logits)
    texts = () if fits or not losses else own_loss.of_labels(losses, labels)
    for nll, own in texts:
        step.add(nll, known.marked(own), is_nll=True)
    if texts:
        step.labelled = call.model
        return f"forward of {name}, its loss call; {ignored}"
    values = call.logits
    if not (known.declared or call.shifted):
        known.is_text.check(known.canonical(labels), [call.tokens])
    labels = known.shifted(labels, shifted)
    if values is None:
        try:
            values = hidden_nll(call, labels, known.ignored.index)
        except ValueError as error:
            step.refused = f" {error}"
            return None
        how = " and its hidden states, since it made no logits"
    step.labelled = call.model
    is_nll = call.logits is None
    step.hand_on(values, labels, call, is_nll=is_nll, came_shifted=shifted, stated=False)
    return f"forward of {name}, with its labels{how}; {ignored}"
