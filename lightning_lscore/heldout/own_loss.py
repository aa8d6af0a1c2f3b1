"""The loss calls of a step that count: those of its own text, or those that the user names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..model.batch import find_tokens, integer_tensors
from ..model.embedding_reads import addresses
from ..model.loaders import micro_batches
from .fit import Fit
from .loss_call import IGNORED, LossCall, LossCalls
from .loss_mask import without_masked
from .text_rows import Text, find_texts, lay_out
from .ways import returned_loss

ChooseLoss = int | Callable[[Sequence[LossCall]], int | Sequence[int]]
"""Index of the loss call that counts, or a function of all of them to an index or several."""

_SETTLES = "Say which one counts with LScore(loss_call=index)."
_HOW = {
    Fit.NEXT: "its labels continue what was read",
    Fit.END: "its labels are the end of what was read",
    Fit.SAME: "its labels are what was read, behind a prefix",
    Fit.PICKED: "its labels are picked from what was read",
}


class OwnLoss:
    """Finds them, and looks into the data once for each pattern of sizes.

    Args:
        choose: the user's choice; None: those of the batch's text.
    """

    def __init__(self, choose: ChooseLoss | None = None) -> None:
        self.doubts: list[str] = []
        self.declared = choose is not None
        self._choose = choose
        self._known: dict[tuple[Any, ...], list[Text]] = {}

    def find(
        self, losses: LossCalls, batch: Any, outputs: Any, repeated: int
    ) -> list[tuple[Tensor, Tensor, str]] | None:
        """Return NLL [B, T'], labels [B, T'] and a remark of each text of the step; None without.

        Raises:
            ValueError: if the user's choice names no call of the step.
        """
        losses.settle()
        heard, tokens, found = losses.heard, find_tokens(batch), []
        texts = self._texts(losses, batch, tokens, returned_loss(outputs))
        for text in texts or ():
            nll, labels = text.rows(heard)
            how, stated = self._words(text), heard[text.calls[0]]
            values = text.values(heard)
            if values is not None:
                losses_known = [returned_loss(outputs), *losses.logged]
                kept = without_masked(values, labels, batch, losses_known, losses.padding)
                labels = kept.labels
                how += f", without {kept.left_out}" if kept.left_out else ""
                self._doubt(kept.doubt)
            if repeated and (tokens is None or len(labels) != len(tokens)):
                self._doubt(
                    "could not find the samples that the sampler repeated among the rows of the "
                    "loss call, so they count twice. Say what counts with "
                    "LScore(logits_and_labels=function)."
                )
            found.append((nll, labels, f"{how}; {stated.ignore_index} ignored as it states"))
        return None if texts is None else found

    def _texts(
        self, losses: LossCalls, batch: Any, tokens: Tensor | None, loss: Tensor | None
    ) -> list[Text] | None:
        """Return the texts; None if there are none."""
        heard = losses.heard
        if self._choose is not None:
            return [lay_out(heard, _chosen(self._choose, heard), tokens)]
        shapes = [None if tokens is None else tokens.shape, *(loss.labels.shape for loss in heard)]
        key = tuple(shapes)
        if not heard or key in self._known:
            return self._known.get(key)
        found = find_texts(heard, losses.read, list(integer_tensors(batch)))
        if found:
            size = _tokens_of(batch, losses.read)
            return self._known.setdefault(key, self._once(heard, found, loss, size))
        return None

    def _once(
        self, heard: Sequence[LossCall], found: Sequence[Text], loss: Tensor | None, tokens: int
    ) -> list[Text]:
        """Return the texts, each once; two losses of one text may be of different logits."""
        kept: dict[int, Text] = {}
        for text in found:
            first = kept.setdefault(text.read, text)
            if first is text or _alike(first.rows(heard), text.rows(heard)):
                continue
            if _is_mean(loss, text.rows(heard)):
                kept[text.read] = text
            elif not _is_mean(loss, first.rows(heard)):
                self._doubt_several(heard)
        labels = [heard[i].labels for text in kept.values() for i in text.calls]
        counted = sum(int((each != IGNORED).sum()) for each in labels)
        if len(kept) > 1 and 0 < tokens < counted:  # as where another model reads it backwards
            self._doubt_several(heard)
            kept = dict(list(kept.items())[:1])
        elif len(kept) > 1 and not _is_made_of(loss, [t.rows(heard) for t in kept.values()]):
            self._doubt(
                f"counts {len(kept)} texts of a validation step together, {_list(heard)}, and the "
                f"loss that it returned is neither their sum nor their mean. {_SETTLES}"
            )
        if any(text.fit == Fit.SAME for text in kept.values()):
            self._doubt(
                "heard a loss whose labels equal the tokens that the model reads, at the same rows."
                " That is right if something stands in front of them, as a prefix does, and wrong "
                f"if nothing does. {_SETTLES}"
            )
        return list(kept.values())

    def _doubt_several(self, heard: Sequence[LossCall]) -> None:
        self._doubt(
            f"heard several losses of one text in a validation step, {len(heard)} loss calls in "
            f"all, and counts the first: {_list(heard)}. {_SETTLES}"
        )

    def of_labels(self, heard: Sequence[LossCall], labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return NLL and labels [B, T'] of the loss calls that are of these labels [B, T]."""
        return [text.rows(heard) for text in find_texts(heard, [labels], [])[:1]]

    def doubt_mean(self, repeated: int) -> None:
        """Say that the mean loss of a batch holds samples that a sampler repeated."""
        if repeated:
            self._doubt(
                "scored a batch by its mean loss, which holds samples that the distributed sampler "
                "repeated: they cannot be taken out of it. Return logits and labels from "
                "validation_step, or let the number of samples be divisible by that of devices."
            )

    def refusal(self, heard: Sequence[LossCall]) -> str:
        """Return why what was heard does not count."""
        if not heard:
            return ""
        return (
            f" It heard the loss of {_list(heard)}: none continues the tokens that were read. "
            "If one is of a language model, say LScore(loss_call=its number)."
        )

    def _words(self, text: Text) -> str:
        names = f"loss call {text.calls[0]}"
        if len(text.calls) > 1:
            names = f"loss calls {text.calls[0]} to {text.calls[-1]}"
        return f"{names} of validation_step; {_HOW[text.fit] if not self.declared else 'declared'}"

    def _doubt(self, sentence: str) -> None:
        if sentence and sentence not in self.doubts:
            self.doubts.append(sentence)


def _chosen(choose: ChooseLoss, heard: Sequence[LossCall]) -> tuple[int, ...]:
    chosen = choose(heard) if callable(choose) else choose
    indices = (chosen,) if isinstance(chosen, int) else tuple(chosen)
    if not indices or not all(-len(heard) <= i < len(heard) for i in indices):
        raise ValueError(
            f"LScore(loss_call=...): expected the index of a loss call of this validation step, got"
            f" {chosen} of {len(heard)} that were heard: {_list(heard) or 'none'}."
        )
    return tuple(i % len(heard) for i in indices)


def _tokens_of(batch: Any, read: Sequence[Tensor]) -> int:
    """Return how many tokens a batch has: those that are known as such, or all that were read."""
    parts = (find_tokens(part) for part in micro_batches(batch))
    known = sum(part.numel() for part in parts if part is not None)
    memory = {addresses(each)[0] for each in read} - {None}
    own = (each.numel() for each in integer_tensors(batch) if addresses(each)[0] in memory)
    return max(known, sum(own))


def _alike(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Whether NLL and labels of two texts are the same, read twice."""
    nll = math.isclose(float(one[0].sum()), float(other[0].sum()), rel_tol=1e-6)
    return nll and int((one[1] != IGNORED).sum()) == int((other[1] != IGNORED).sum())


def _is_mean(loss: Tensor | None, text: tuple[Tensor, Tensor]) -> bool:
    """Whether a loss is the mean NLL of a text."""
    nll, labels = text
    mean = float(nll.sum()) / max(1, int((labels != IGNORED).sum()))
    return loss is not None and math.isclose(float(loss.detach()), mean, rel_tol=1e-4)


def _is_made_of(loss: Tensor | None, texts: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether a loss, if there is one, is the sum or a mean of those of several texts."""
    if loss is None:
        return True
    sums = [(float(nll.sum()), max(1, int((labels != IGNORED).sum()))) for nll, labels in texts]
    means = [nll / count for nll, count in sums]
    nll, count = map(sum, zip(*sums, strict=True))
    made = (sum(means), sum(means) / len(means), nll, nll / count)
    return any(math.isclose(float(loss.detach()), one, rel_tol=1e-2) for one in made)


def _list(heard: Sequence[LossCall]) -> str:
    shown = ", ".join(f"{i}: {loss}" for i, loss in enumerate(heard[:4]))
    return shown + ", ..." * (len(heard) > 4)
