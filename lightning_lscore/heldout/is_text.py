"""Whether labels that came with logits are text at all; taggers and masked models have others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..model.leaves import is_integer, leaves
from ..model.padding import is_binary
from ..model.sharded import whole
from .fit import enough, fit_of, share
from .loss_call import IGNORED
from .nothing_found import FEWEST_WORDS, NoLanguageModel, refuse_classes


class IsText:
    """Looks it up once for each form of labels, since looking waits for a GPU."""

    def __init__(self) -> None:
        self.doubts: list[str] = []
        self._known: set[tuple[int, ...]] = set()

    def check(
        self,
        labels: Tensor,
        read: Sequence[Tensor | None],
        logits: Tensor | None = None,
        looked_up: Sequence[Tensor] = (),
        guessed: bool = False,
    ) -> None:
        """Refuse labels of classes, and doubt those that are no text.

        Args:
            labels: [B, T], with :data:`IGNORED`.
            read: tokens that the model read, and others that labels may be a part of.
            logits: of a model that may be anything.
            looked_up: what its embeddings read.
            guessed: whether how the labels are shifted is doubted already.

        Raises:
            NoLanguageModel: if the logits are those of classes.
        """
        form = labels.shape[1:] if logits is None else logits.shape[1:]
        if form in self._known:
            return
        classes = FEWEST_WORDS if logits is None else logits.shape[-1]
        answer = is_text(labels, read, classes)
        if not answer and logits is not None:
            refuse_classes(logits, [tokens for tokens in looked_up if tokens.ndim == 2])
        if answer is False and not guessed and not self.doubts:
            self.doubts.append(
                "scores labels that are neither the tokens that the model read nor those after "
                "them. If it predicts something else than the next token, as a masked model does, "
                "this is no perplexity. LScore(logits_and_labels=function) says what counts."
            )
        if answer is not None:
            self._known.add(form)


def check_words_are_read(labels: Tensor, batch: Any) -> None:
    """Refuse labels of a batch that has numbers to read, and no words beside the labels.

    Args:
        labels: of a step in which no embedding looked anything up.
        batch: of the step.

    Raises:
        NoLanguageModel: for labels of frames or pixels.
    """
    tensors = [whole(leaf.tensor) for leaf in leaves(batch) if leaf.name != "attention_mask"]
    words = [each for each in tensors if is_integer(each) and each.ndim > 1]
    numbers = [each for each in tensors if each.is_floating_point() and each.ndim > 1]
    if numbers and all(_is_same(each, labels) or is_binary(each) for each in words):
        raise NoLanguageModel(
            "expected a step that reads the words before those it predicts, got one that reads "
            f"numbers {list(numbers[0].shape)} and looks up no word. If its labels are those of a "
            "language model, say so by LScore(labels_are_shifted=True) or False."
        )


def _is_same(one: Tensor, labels: Tensor) -> bool:
    return one.numel() == labels.numel() and bool(
        (one.flatten().to(labels.device) == labels.flatten()).all()
    )


def is_text(labels: Tensor, read: Sequence[Tensor | None], classes: int) -> bool | None:
    """Return whether labels [B, T'] are the tokens that were read, in place or the ones after.

    None: nothing was read that could be compared, or no label counts. Waits for the device.
    """
    if labels.ndim != 2 or not bool((labels != IGNORED).any()):
        return None
    tokens = [t for t in read if t is not None and t.ndim == 2 and len(t) == len(labels)]
    labels = _telling(labels)
    answers = [_continue(labels, each.to(labels.device), classes) for each in tokens]
    return any(answers) if answers else None


def _telling(labels: Tensor) -> Tensor:
    """Return labels without the commonest: the id of padding and a tag of nothing are both 0."""
    commonest = labels[labels != IGNORED].mode().values
    others = labels.masked_fill(labels == commonest, IGNORED)
    return others if bool((others != IGNORED).any()) else labels


def _continue(labels: Tensor, tokens: Tensor, classes: int) -> bool:
    length = labels.shape[1]
    in_place = tokens.shape[1] >= length and share(labels, tokens[:, :length]) >= enough(classes)
    return in_place or bool(fit_of(labels, tokens, classes))
