"""Whether labels are already shifted against the logits: the evidence, in a fixed order.

A causal model's logits at position t predict the token at t + 1. Labels are "shifted" if label t is
the token after input t, and not shifted if they are a copy of the input, as most transformers
models expect them. Labels that are shifted twice, or never, go unnoticed, so what shows it is asked
in this order, and the first answer counts:

1. declared: ``LScore(labels_are_shifted=...)``;
2. the loss call: its labels are these, as they are or moved by one;
3. the tokens: labels equal what the model read, or that moved by one;
4. the loss's value: it is the mean NLL of these labels, as they are or moved by one;
5. the class: what the model's own loss is known to do.

What answers differently later in this order, or that nothing answers, is a doubt that is said once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..model.sharded import is_sharded, whole
from .listening import Call
from .loss_call import IGNORED, LossCall
from .nll import token_nll

# Decoders of transformers whose own loss compares label t with logits t (5.x, read in their code).
_IN_PLACE = re.compile(
    r"(Bart|BigBirdPegasus|Blenderbot|BlenderbotSmall|CpmAnt|MBart|Marian|Mvp|PLBart|Pegasus"
    r"|ProphetNet|TrOCR|Whisper)ForCausalLM|(XLNetLMHead|FlaubertWithLMHead|XLMWithLMHead)Model"
)
# What rounding may change of a mean loss that is computed in this dtype.
_ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
_SETTLES = "Say LScore(labels_are_shifted=True) or False."


class Shift(NamedTuple):
    """How labels are aligned."""

    shifted: bool
    """Whether label t belongs to logits t already."""
    how: str
    """It is known, in words."""
    stated: bool = False
    """Whether a loss call of these labels states it."""


class Alignment:
    """What is known so far about how a run's labels are aligned.

    Args:
        declared: whether labels are shifted; None: read it off the evidence.
        ignore_index: label of the positions that are not counted.
    """

    def __init__(self, declared: bool | None, ignore_index: int) -> None:
        self.guessed = False
        """Whether nothing has told the alignment."""
        self.doubts: list[str] = []
        """Evidence that contradicts itself, or leaves the alignment open."""
        self._declared = declared
        self._ignore_index = ignore_index
        self._known: dict[tuple[Any, ...], tuple[bool, str]] = {}

    def of_call(
        self, call: Call, labels: Tensor, losses: Sequence[LossCall] = ()
    ) -> tuple[bool, str]:
        """Return whether the labels that a model was called with are shifted, and a remark."""
        if self._declared is not None:
            return self._declared, f", declared {'' if self._declared else 'not '}shifted"
        if call.shifted:
            return True, ""
        name, ignore = type(call.model).__name__, self._ignore_index
        evidence: tuple[tuple[str, Callable[[], bool | None]], ...] = (
            ("its loss call", lambda: of_losses(losses, labels, ignore)),
            ("the tokens it read", lambda: self._against(labels, (call.tokens,))),
            ("its loss's value", lambda: of_value(call.loss, call.logits, labels, ignore)),
        )
        found = self._first((name, *_sizes(losses)), evidence)
        if found is None and (of_class := _of_class(call.model)) is not None:
            found = of_class, "its class"
        if found is None:
            return self._guess(labels)
        moves = "which its loss does not move" if found[0] else "which its loss moves"
        return found[0], f", {moves} ({found[1]})"

    def of_found(
        self,
        values: Tensor,
        labels: Tensor,
        read: Iterable[Tensor | None],
        call: Call | None,
        losses: Sequence[LossCall] = (),
        loss: Any = None,
    ) -> Shift:
        """Return whether labels that were found beside logits are shifted, and how that is known.

        Args:
            values: logits, or a scalar NLL.
            labels: one for each row of logits.
            read: tokens that the model read, as far as they are known.
            call: of the model that made the logits, if it was heard.
            losses: heard in the step.
            loss: that the step returned.
        """
        if self._declared is not None:
            return Shift(self._declared, f"declared {'' if self._declared else 'not '}shifted")
        if labels.ndim == 1 or values.shape[1:2] == (1,):
            return Shift(True, "one prediction a sample, nothing to shift")
        if call is not None and call.shifted:
            return Shift(True, "labels as an encoder-decoder model has them")
        ignore = self._ignore_index
        evidence: tuple[tuple[str, Callable[[], bool | None]], ...] = (
            ("the loss call", lambda: of_losses(losses, labels, ignore)),
            ("the tokens", lambda: self._against(labels, read)),
            ("the loss's value", lambda: of_value(loss, values, labels, ignore)),
        )
        form = (*values.shape[1:], *labels.shape[1:], *_sizes(losses))
        found = self._first(form, evidence)
        if found is not None:
            how = f"labels found to be {'already' if found[0] else 'not'} shifted; by {found[1]}"
            return Shift(found[0], how, stated=found[1] == evidence[0][0])
        return Shift(*self._guess(labels))

    def _guess(self, labels: Tensor) -> tuple[bool, str]:
        if not self.guessed and not (whole(labels) != self._ignore_index).any():
            # Nothing to read, and nothing to guess.
            return False, "this rank saw no label that counts"
        if not self.guessed:
            self.doubts.append(
                "could not tell whether labels are already shifted against the input, and took "
                f"them as not shifted, as transformers models expect. {_SETTLES}"
            )
        self.guessed = True
        return False, "labels taken as not shifted"

    def _first(
        self,
        key: tuple[Any, ...],
        evidence: tuple[tuple[str, Callable[[], bool | None]], ...],
    ) -> tuple[bool, str] | None:
        """Return the first answer and who gave it; asked once, since looking waits for a GPU."""
        if key in self._known:
            return self._known[key]
        answers = ((answer, name) for name, ask in evidence if (answer := ask()) is not None)
        found = next(answers, None)
        if found is None:
            return None
        if other := next((name for answer, name in answers if answer != found[0]), None):
            self.doubts.append(_contradiction(found, other))
        self.guessed = False
        return self._known.setdefault(key, found)

    def _against(self, labels: Tensor, read: Iterable[Tensor | None]) -> bool | None:
        answers = (alignment(labels, t, self._ignore_index) for t in read if t is not None)
        return next((answer for answer in answers if answer is not None), None)


def _contradiction(found: tuple[bool, str], other: str) -> str:
    """Return the sentence for two pieces of evidence that answer differently."""
    already = "already shifted against the input"
    said = (already, f"not {already}") if found[0] else (f"not {already}", already)
    return (
        f"found labels to be {said[0]} by {found[1]}, which counts, and {said[1]} by {other}. One "
        f"of the two is a mistake, such as labels that are shifted twice, or never. {_SETTLES}"
    )


def of_losses(losses: Sequence[LossCall], labels: Tensor, ignore_index: int) -> bool | None:
    """Return whether a loss call compares these labels [B, T] as they are (True) or moved by one.

    None: none of them is of these labels, or both fit.
    """
    labels = whole(labels)
    if labels.ndim != 2:
        return None
    for calls in (*([loss] for loss in reversed(losses)), losses if len(losses) > 1 else ()):
        stated = torch.cat([loss.labels.flatten() for loss in calls]) if calls else labels[:0]
        moved, size = shift(labels, ignore_index), labels.numel()
        forms = []
        if len(stated) == labels[:, 1:].numel():
            forms.append((False, labels[:, 1:]))
        elif len(stated) and len(stated) % size == 0:  # several streams have the same labels
            forms += [(True, labels), (False, moved)]
        fits = [shifted for shifted, form in forms if _agree(stated[: form.numel()], form)]
        if len(fits) == 1:
            return fits[0]
    return None


def of_size(losses: Sequence[LossCall], labels: Tensor) -> list[LossCall]:
    """Return the loss calls, or chunks of one, that have as many labels as these, or one less."""
    if labels.ndim != 2 or not labels.numel():
        return [one for one in losses if one.labels.numel() == labels.numel()]

    def fits(size: int) -> bool:
        return size == labels[:, 1:].numel() or (size > 0 and size % labels.numel() == 0)

    found = [one for one in losses if fits(one.labels.numel())]
    return found or (list(losses) if fits(sum(_sizes(losses))) else [])


def _agree(stated: Tensor, labels: Tensor) -> bool:
    counted = stated != IGNORED
    return bool(counted.any() and ((stated == labels.flatten().to(stated.device)) | ~counted).all())


def of_value(loss: Any, logits: Tensor | None, labels: Tensor, ignore_index: int) -> bool | None:
    """Return whether a mean loss is that of the labels as they are (True), or moved by one.

    None: neither, for example because something else is in it. Waits for the device.
    """
    if not isinstance(loss, Tensor) or not isinstance(logits, Tensor) or loss.numel() != 1:
        return None
    if is_sharded(logits) or is_sharded(labels) or labels.shape != logits.shape[:-1]:
        return None
    value, off = float(loss.detach()), []
    for target in (labels, shift(labels, ignore_index)):
        nll, count = token_nll(logits, target.to(logits.device), ignore_index)
        off.append(abs(float(nll / count) - value))
    if not math.isfinite(sum(off)):
        return None
    # As near as rounding, and far from the other: auxiliary terms must not look so by chance.
    near = _ROUNDING.get(loss.dtype, 2e-5) * max(1.0, abs(value))
    in_place = min(off) == off[0]
    return in_place if min(off) < near and min(off) < 0.1 * max(off) else None


def _of_class(model: Any) -> bool | None:
    """Return whether the loss of the model's class, or of one it inherits from, moves no labels."""
    classes = type(model).__mro__
    if any(_IN_PLACE.fullmatch(each.__name__) for each in classes):
        return True
    known = any(each.__module__.startswith("transformers.models.") for each in classes)
    return False if known else None


def _sizes(losses: Sequence[LossCall]) -> tuple[int, ...]:
    return tuple(loss.labels.numel() for loss in losses)


def shift(labels: Tensor, ignore_index: int) -> Tensor:
    """Return labels such that label t is the token after input t."""
    # Labels are small, logits are not.
    return nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index)


def alignment(labels: Any, tokens: Any, ignore_index: int = -100) -> bool | None:
    """Return whether labels [B, T] are shifted against the input tokens [B, T or T + 1].

    True: label t is token t + 1. False: label t is token t. None: both or neither fit.
    Negative and ignored labels fit anything, and so does a last label that the tokens lack, an end
    of text, if labels are shifted. Reads the data, so it waits for a device.
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
    if not (not_shifted or shifted):
        return True if _continue(labels, tokens[:, 1:], ignore_index) else None
    return None if not_shifted == shifted else shifted


def _continue(labels: Tensor, after: Tensor, ignore_index: int) -> bool:
    """Whether all labels but the last of each sequence, an end of text, are the tokens after."""
    counted = (labels >= 0) & (labels != ignore_index)
    inner = counted & (counted.flip(1).cumsum(1).flip(1) > 1)
    inner = inner[:, : after.shape[1]]
    return bool(inner.any() and ((labels[:, : after.shape[1]] == after) | ~inner).all())
