"""Whether labels are already shifted against the logits, and labels that are.

A causal model's logits at position t predict the token at t + 1. Labels are "shifted" if label t is
the token after input t, and not shifted if they are a copy of the input, as transformers models
expect them. Shifting labels twice goes unnoticed, so unless the user declares which of the two
they are, it is read off the data: one of them equals the batch's input tokens.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from ..model.sharded import is_sharded, whole
from .listening import Call
from .nll import token_nll


class Alignment:
    """What is known so far about how a run's labels are aligned.

    Args:
        declared: whether labels are shifted; None: read it off the data.
        ignore_index: label of the positions that are not counted.
    """

    def __init__(self, declared: bool | None, ignore_index: int) -> None:
        self.guessed = False
        """Whether the alignment was neither declared nor readable from the data."""
        self._declared = declared
        self._ignore_index = ignore_index
        self._detected: bool | None = None
        self._in_place: bool | None = None  # whether a model's own loss moves no labels

    def of_call(self, call: Call, labels: Tensor) -> tuple[bool, str]:
        """Return whether the labels that a model was called with are shifted, and a remark."""
        if call.shifted or self._declared:
            return True, ""
        if self._declared is None and self._loss_moves_no_labels(call, labels):
            return True, ", which its loss does not move"
        return False, ""

    def _loss_moves_no_labels(self, call: Call, labels: Tensor) -> bool:
        """Whether a causal model's own loss compares label t with logits t.

        The losses of BART's, Whisper's and XLNet's decoders do. The loss's value shows it, in the
        first batch that has one: looking waits for the device.
        """
        logits, loss = call.logits, call.loss
        if self._in_place is None and isinstance(loss, Tensor) and isinstance(logits, Tensor):
            sharded = is_sharded(logits) or is_sharded(labels)
            if loss.numel() != 1 or sharded or labels.shape != logits.shape[:-1]:
                return False
            loss, off = float(loss.detach()), []
            for target in (labels, shift(labels, self._ignore_index)):
                nll, count = token_nll(logits, target.to(logits.device), self._ignore_index)
                off.append(abs(float(nll / count) - loss))
            if math.isfinite(sum(off)):
                # As near as rounding: an auxiliary loss must not look like it by chance.
                self._in_place = off[0] < 2e-5 * max(1.0, loss) and off[0] < 0.1 * off[1]
        return bool(self._in_place)

    def of_found(
        self, values: Tensor, labels: Tensor, tokens: Tensor | None, call: Call | None
    ) -> tuple[bool, str]:
        """Return whether labels that were found beside logits are shifted, and how that is known.

        Args:
            values: logits, or a scalar NLL.
            labels: one for each row of logits.
            tokens: that the model read, if they are known.
            call: of the model that made the logits, if it was heard.
        """
        if self._declared is not None:
            return self._declared, f"declared {'' if self._declared else 'not '}shifted"
        if labels.ndim == 1 or values.shape[1:2] == (1,):
            return True, "one prediction a sample, nothing to shift"
        if call is not None and call.shifted:
            return True, "labels as an encoder-decoder model has them"
        if self._detected is None:
            # After a guess this looks no more: looking waits for a GPU, at every batch.
            if not self.guessed and not (whole(labels) != self._ignore_index).any():
                # Nothing to read, and nothing to guess.
                return False, "this rank saw no label that counts"
            if tokens is not None:
                self._detected = alignment(labels, tokens, self._ignore_index)
            self.guessed = self._detected is None
        shifted = bool(self._detected)
        how = "taken as" if self.guessed else "found to be"
        return shifted, f"labels {how} {'already' if shifted else 'not'} shifted"


def shift(labels: Tensor, ignore_index: int) -> Tensor:
    """Return labels such that label t is the token after input t."""
    # Labels are small, logits are not.
    return nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)


def alignment(labels: Any, tokens: Any, ignore_index: int = -100) -> bool | None:
    """Return whether labels [B, T] are shifted against the input tokens [B, T or T + 1].

    True: label t is token t + 1. False: label t is token t. None: both or neither fit.
    Negative and ignored labels fit anything. Reads the data, so it waits for a device.
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
    return None if not_shifted == shifted else shifted
