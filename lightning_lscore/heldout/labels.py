"""What is known about a run's labels: which of them count, how they are shifted, and if as text."""

from __future__ import annotations

from torch import Tensor

from ..model.sharded import whole
from .alignment import Alignment
from .ignored import Ignored
from .is_text import IsText
from .loss_call import IGNORED
from .shift_evidence import shift


class Labels:
    """What all ways to logits share.

    Args:
        shifted: whether label t is the token after input t. None: read it off the data.
        ignore_index: label of the positions that are not counted. None: found.
        are_given: whether the user's function hands them over.
    """

    def __init__(self, shifted: bool | None, ignore_index: int | None, are_given: bool) -> None:
        self.ignored = Ignored(ignore_index)
        self.alignment = Alignment(shifted, self.ignored.index)
        self.is_text = IsText()
        self.declared = are_given or shifted is not None
        """Whether the user said how they are shifted, and that they are text."""

    def marked(self, labels: Tensor) -> Tensor:
        """Return labels of a loss call with the run's own index where they do not count."""
        return labels.masked_fill(labels == IGNORED, self.ignored.index)

    def canonical(self, labels: Tensor) -> Tensor:
        """Return labels with that of a loss call where they do not count."""
        return labels.masked_fill(labels == self.ignored.index, IGNORED)

    def shifted(self, labels: Tensor, already: bool) -> Tensor:
        """Return labels such that label t belongs to logits t."""
        labels = whole(labels)
        return labels if already else shift(labels, self.ignored.index)
