"""The label that does not count: what shows it, in a fixed order.

1. declared: ``LScore(ignore_index=...)``;
2. the loss call of these labels states it;
3. the module holds one ``CrossEntropyLoss`` or ``NLLLoss`` that does;
4. -100, and with it all labels below 0, since they are no words.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..model.sharded import whole
from .loss_call import IGNORED, LossCall


class Ignored:
    """What is known about the label that a run ignores.

    Args:
        declared: by the user; None: read it off the evidence.
    """

    def __init__(self, declared: int | None) -> None:
        self.index = IGNORED if declared is None else declared
        """The label of what does not count in the labels that :meth:`mark` returns."""
        self.doubts: list[str] = []
        self._declared = declared
        self._own: set[int] = set()

    def look_into(self, module: nn.Module) -> None:
        """Note what the loss modules inside of ``module`` ignore."""
        losses = (m for m in module.modules() if isinstance(m, (nn.CrossEntropyLoss, nn.NLLLoss)))
        self._own = {loss.ignore_index for loss in losses}

    def mark(
        self, labels: Tensor, losses: Sequence[LossCall] = (), own: bool = True
    ) -> tuple[Tensor, str]:
        """Return labels with :attr:`index` where they do not count, and who told it.

        Args:
            labels: that were found.
            losses: the calls that are of these labels.
            own: whether the module's own losses may be of them.
        """
        stated = {loss.ignore_index for loss in losses}
        told = "as the loss call states"
        if not stated:
            stated, told = self._own if own else set(), "as the module's loss does"
        if self._declared is not None:
            self._contradict(labels, stated)
            return labels, f"{self._declared} ignored as declared"
        if len(stated) > 1:
            self._doubt(
                f"found losses in the module that ignore different labels, {sorted(stated)}, and "
                "ignores those below 0 alone. Say LScore(ignore_index=...)."
            )
        if len(stated) != 1:
            stated, told = {IGNORED}, "by convention"
        (index,) = stated
        none = (labels == index) | (labels < 0)
        return labels.masked_fill(none, self.index), f"{index} ignored {told}"

    def as_stated(self, labels: Tensor, loss: LossCall) -> Tensor:
        """Return shifted labels [B, T] that ignore what the loss call of them ignores."""
        counted = (loss.labels != IGNORED).flatten()[: labels.numel()].to(labels.device)
        counted = counted.view(len(labels), -1)
        counted = nn.functional.pad(counted, (0, labels.shape[1] - counted.shape[1]))
        return labels.masked_fill(~counted, self.index)

    def _contradict(self, labels: Tensor, stated: set[int]) -> None:
        for other in stated - {self._declared, IGNORED}:
            if bool((whole(labels) == other).any()):
                self._doubt(
                    f"was told to ignore labels of {self._declared}, and the module's loss ignores "
                    f"{other}, which LScore counts. Leave ignore_index out, or give the other."
                )

    def _doubt(self, sentence: str) -> None:
        if sentence not in self.doubts:
            self.doubts.append(sentence)
