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

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..model.sharded import whole
from .listening import Call
from .loss_call import LossCall
from .shift_evidence import alignment, of_class, of_losses, of_value, sizes

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
        found = self._first((name, *sizes(losses)), evidence)
        if found is None and (known := of_class(call.model)) is not None:
            found = known, "its class"
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
        form = (*values.shape[1:], *labels.shape[1:], *sizes(losses))
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
