"""One validation step: what was heard in it, and where its logits and labels go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..model.batch import find_mask, find_tokens
from ..model.sharded import Part, counts_here, is_sharded, row_shapes
from .counted_labels import ignore_padding, ignore_repeated
from .held_out import HeldOut
from .listening import Call
from .nll import row_nll
from .nothing_found import NoLanguageModel


@dataclass
class Step:
    """The validation step that is under way."""

    batch: Any
    held_out: HeldOut
    repeated: int
    """Samples at the end of the batch that a sampler repeated."""
    ignore_index: int
    mesh: Any
    """``LightningModule.device_mesh``."""
    labelled: Any = None
    """The model that was called with labels."""
    call: Call | None = None
    """A call without labels."""
    parts: int = 0
    """Calls without labels that got other tokens than the batch's."""
    of_several: bool = False
    """Whether calls without labels read several texts."""
    refused: str = ""
    """Why a call with labels was not used."""
    labels: list[Tensor] = field(default_factory=list)
    """That were handed on."""

    def note(self, call: Call) -> None:
        """Keep a call without labels, preferably one with the tokens of the batch."""
        if call.logits is None or call.tokens is None:
            return
        if call.logits.shape[:2] != call.tokens.shape or call.tokens.shape[1] == 1:
            return  # this call generates text: there is nothing to score
        expected = find_tokens(self.batch)
        fits = expected is not None and expected.shape == call.tokens.shape
        self.parts += not fits
        before = None if self.call is None else self.call.tokens
        if before is not None:
            same = before.shape == call.tokens.shape and bool((before == call.tokens).all())
            self.of_several |= not same
        elif expected is not None and expected.ndim > 1:
            self.of_several = len(call.tokens) > len(expected)
        if fits or self.call is None:
            self.call = call

    def only_call(self) -> Call | None:
        """Return the call without labels.

        Raises:
            ValueError: if there were several with parts of the batch.
        """
        if self.call is not None and self.parts > 1:
            raise ValueError(
                f"expected the {type(self.call.model).__name__} to be called once without labels "
                f"in a validation step, got {self.parts} calls with parts of the batch. Give each "
                "its labels, or say what counts with LScore(logits_and_labels=function)."
            )
        return self.call

    def hand_on(
        self,
        values: Tensor,
        labels: Tensor,
        call: Call | None,
        *,
        is_nll: bool,
        came_shifted: bool,
        stated: bool,
    ) -> None:
        """Hand on logits, or NLL, with labels that ignore padding and repeated samples.

        Args:
            values: logits, or, if ``is_nll``, what :meth:`HeldOut.update_nll` takes.
            labels: one for each row, shifted.
            call: that made the logits, if it was heard.
            is_nll: what values are.
            came_shifted: whether nobody had to shift them.
            stated: whether a loss call states which ones count, so no mask is needed.
        """
        part = Part.of(values) if is_sharded(values) else None
        if not is_nll:
            _check_rows(values, labels, part)
        given = None if call is None else call.tokens
        tokens = find_tokens(self.batch) if given is None else given
        masks = [] if stated else self._masks(call)
        labels = ignore_padding(labels, masks, self.ignore_index, tokens if came_shifted else None)
        if part is not None:
            labels = self._once(labels)
            values, is_nll = row_nll(values, labels, self.ignore_index), True
            labels = part.own(labels)
        if not counts_here(self.mesh, part):
            labels = torch.full_like(labels, self.ignore_index)
        self.add(values, labels, is_nll=is_nll, whole=part is None)

    def add(self, values: Tensor, labels: Tensor, *, is_nll: bool, whole: bool = True) -> None:
        """Add what counts to the held-out sums.

        Args:
            values: logits or NLL.
            labels: what each row predicts.
            is_nll: what values are.
            whole: whether labels are those of the whole batch, where the last ones may be repeated.
        """
        if whole:
            labels = self._once(labels)
        if labels.ndim == 1:  # one prediction a sample
            values, labels = values.unsqueeze(1) if values.ndim else values, labels[:, None]
        if labels.numel():
            add = self.held_out.update_nll if is_nll else self.held_out.update
            add(values, labels.to(values.device))
            self.labels.append(labels)

    def _once(self, labels: Tensor) -> Tensor:
        """Return labels without those of repeated samples."""
        tokens = find_tokens(self.batch)
        return ignore_repeated(labels, self.repeated, tokens, self.ignore_index)

    def _masks(self, call: Call | None) -> list[Any]:
        """Return attention masks of the tokens that predict: the model's, then the batch's."""
        if call is not None and call.shifted:
            return []  # an encoder-decoder model's may belong to the encoder
        tokens = find_tokens(self.batch)
        given = None if call is None else call.mask
        return [given, None if tokens is None else find_mask(self.batch, tokens)]

    def counted(self) -> str:
        """Return how many of the labels handed on count, in words; waits for the device."""
        total = sum(labels.numel() for labels in self.labels)
        counted = sum(int((labels != self.ignore_index).sum()) for labels in self.labels)
        return f"{counted:,} of {total:,} tokens" if counted else ""


def is_of_rows(labels: Tensor, logits: Tensor) -> bool:
    """Whether there is one label for each row of logits, of all of them or of this process's."""
    return labels.shape in row_shapes(logits, Part.of(logits) if is_sharded(logits) else None)


def _check_rows(logits: Tensor, labels: Tensor, part: Part | None) -> None:
    if labels.ndim > 2 or labels.shape not in row_shapes(logits, part):
        message = (
            "expected one label for each row of logits, logits [batch, time, vocabulary] and "
            f"labels [batch, time]; got logits {list(logits.shape)} and labels "
            f"{list(labels.shape)}. Return the two of equal length from validation_step, or "
            "hand over others with LScore(logits_and_labels=function)."
        )
        raise NoLanguageModel(message) if logits.ndim != 3 else ValueError(message)
