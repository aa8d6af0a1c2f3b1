"""A number that tells one held-out set from another."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (1 << 40) - 1
"""Bits of a fingerprint: few enough to sum over thousands of ranks exactly in float64."""


def fingerprint(labels: Tensor, counted: Tensor) -> Tensor:
    """Return a number that tells sets of sequences apart: an int64 scalar with :data:`BITS`.

    It is the sum of a hash of each counted label and the one before it. Neither the order of
    sequences nor their division into batches and ranks changes it; another text, another tokenizer,
    or another sequence length does.

    Args:
        labels: [..., T]; the last dimension is the sequence.
        counted: which labels count, of the same shape.
    """
    labels = labels.long()
    before = torch.zeros_like(labels)
    before[..., 1:] = torch.where(counted[..., :-1], labels[..., :-1] + 1, 0)
    # Multiply and fold as in splitmix64; int64 wraps around.
    h = labels * -7046029254386353131 + before * -4658895280553007687
    h = (h ^ (h >> 31)) * -7723592293110705685
    return (torch.where(counted, h ^ (h >> 27), 0) & BITS).sum()
