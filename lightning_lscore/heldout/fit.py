"""How labels lie in the tokens that were read: whether they are text, and of which kind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from enum import IntEnum

import torch
from torch import Tensor, nn

from .loss_call import IGNORED
from .nothing_found import FEWEST_WORDS


class Fit(IntEnum):
    """How labels [B, T'] lie in tokens [B, T], from the weakest to the strongest."""

    NONE = 0
    PICKED = 1
    """A selection of the tokens, in their order."""
    SAME = 2
    """Tokens that are read at the same row: right if others stand in front, as pictures do."""
    END = 3
    """The last T' of the tokens."""
    NEXT = 4
    """Label t is token t + 1."""


def fit_of(labels: Tensor, tokens: Tensor, classes: int) -> Fit:
    """Return how labels [B, T'] lie in tokens [B, T]; reads the data, so it waits for a device."""
    length, after = labels.shape[1], tokens.shape[1] - labels.shape[1]
    tokens = nn.functional.pad(tokens.to(labels.device), (max(0, -after), 0), value=IGNORED)
    same, next_ = share(labels, tokens[:, :length]), share_of_next(labels, tokens)
    if after <= 1 and next_ >= max(enough(classes), same):
        return Fit.NEXT
    if after > 1 and classes >= FEWEST_WORDS and share(labels, tokens[:, after:]) == 1:
        return Fit.END
    is_text = classes >= FEWEST_WORDS and length > 1
    return Fit.SAME if is_text and after <= 0 and same == 1 else Fit.NONE


def share_of_next(labels: Tensor, tokens: Tensor) -> float:
    """Return the share of the counted labels [B, T'] that equal the token after theirs, [B, T]."""
    length, after = labels.shape[1], tokens.shape[1] - labels.shape[1]
    following = nn.functional.pad(tokens[:, 1 : length + 1], (0, max(0, 1 - after)), value=IGNORED)
    return share(labels, following.to(labels.device))


def enough(classes: int) -> float:
    """Return the share of labels that must equal tokens for them to be the same text.

    Where targets end in a token that the inputs lack, or inputs are noisy, some differ.
    """
    return 0.5 if classes >= FEWEST_WORDS else 0.9  # half of few classes is equal by chance


def share(labels: Tensor, tokens: Tensor) -> float:
    """Return the share of the counted labels that equal the tokens."""
    counted = labels != IGNORED
    equal = (labels == tokens) & counted
    return float(equal.sum() / counted.sum().clamp(min=1))


def with_joined(read: Sequence[Tensor]) -> list[Tensor]:
    """Return what was read, and what was read in parts of equal length as one."""
    lengths: dict[int, list[Tensor]] = {}
    for each in read:
        if each.ndim == 2:
            lengths.setdefault(each.shape[1], []).append(each)
    return [*read, *(torch.cat(parts) for parts in lengths.values() if len(parts) > 1)]


def in_steps(read: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield as texts [B, T] what was read a token of each row at a time, as recurrent decoders do.

    Each look-up is [B], [B, 1] or [1, B].
    """
    steps: dict[int, list[Tensor]] = {}
    for each in read:
        if each.numel() == max(each.shape, default=1):
            steps.setdefault(each.numel(), []).append(each.flatten())
    yield from (torch.stack(parts, 1) for parts in steps.values() if len(parts) > 1)


def read_to_the_end(read: Sequence[Tensor], batch: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield what was read with the token after it, which is predicted only, from the batch."""
    for text, other in itertools.product(read, batch):
        if text.ndim == other.ndim == 2 and len(text) == len(other):
            if other.shape[1] == text.shape[1] and bool((other[:, :-1] == text[:, 1:]).all()):
                yield torch.cat([text[:, :1], other], 1)
            elif other.shape[1] == text.shape[1] + 1 and bool((other[:, :-1] == text).all()):
                yield other


def distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors [B, T] or [T] without repetition, and without numbers of positions.

    Nothing continues a single token, so there are none of length 1.
    """
    found: list[Tensor] = []
    for each in tensors:
        if each.ndim not in (1, 2) or not each.numel() or each.shape[-1] == 1:
            continue
        positions = torch.arange(each.shape[-1], device=each.device).expand_as(each)
        others = (one for one in found if one.shape == each.shape)
        if not any(bool((each == one.to(each.device)).all()) for one in (positions, *others)):
            found.append(each)
    return found
