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
        self._own: int | None = None

    def look_into(self, module: nn.Module) -> None:
        """Note what the loss modules inside of ``module`` ignore."""
        losses = (m for m in module.modules() if isinstance(m, (nn.CrossEntropyLoss, nn.NLLLoss)))
        found = {loss.ignore_index for loss in losses}
        self._own = found.pop() if len(found) == 1 else None
        if found:
            self.doubts = [
                f"found that losses in the module ignore different labels, {sorted(found)}, and "
                "ignores those below 0. Say LScore(ignore_index=...)."
            ]

    def mark(self, labels: Tensor, losses: Sequence[LossCall] = ()) -> tuple[Tensor, str]:
        """Return labels with :attr:`index` where they do not count, and who told it."""
        stated: set[int | None] = {loss.ignore_index for loss in losses}
        if self._declared is not None:
            self._contradict(labels, stated or {self._own})
            return labels, f"{self._declared} ignored as declared"
        one = stated.pop() if len(stated) == 1 else None
        if one is not None:
            index, told = one, "as the loss call states"
        elif self._own is not None:
            index, told = self._own, "as the module's loss does"
        else:
            index, told = IGNORED, "by convention"
        none = (labels == index) | (labels < 0)
        return labels.masked_fill(none, self.index), f"{index} ignored {told}"

    def _contradict(self, labels: Tensor, stated: set[int | None]) -> None:
        other = stated.pop() if len(stated) == 1 else None
        if other in (None, self._declared, IGNORED) or self.doubts:
            return
        if bool((whole(labels) == other).any()):
            self.doubts.append(
                f"was told to ignore labels of {self._declared}, and the module's loss ignores "
                f"{other}, which LScore counts. Leave ignore_index out, or give the other."
            )
