"""The tokens in a batch, whatever its structure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .leaves import Leaf, is_integer, leaves
from .padding import as_padding_mask, is_binary

# What holds the model's input, by its name: as transformers, TRL, litGPT, nanoGPT, torchtext and
# many modules of one's own have it.
_INPUTS = (
    *("input_ids", "token_ids", "tokens", "inputs", "input"),
    *("x", "idx", "ids", "text", "src", "source", "src_tokens", "source_ids"),
)
_NAMES_OF_ROWS = frozenset(_INPUTS[5:])
"""With these a tensor needs rows [B, T] to be tokens, else it may be an index or a label."""

# These hold tokens too, but as a target; they are the input where nothing else is.
_TARGETS = ("y", "tgt", "trg", "tgt_tokens", "decoder_input_ids")
_OF_TARGETS = ("label", "target")

# Whole numbers that are no tokens have one of these in their names; "masked_ids" are some.
_OTHERS = re.compile(
    "mask(?!ed)|position|pos_ids|token_type|segment|(doc|document|seq|sequence|sample)_?id"
    "|cu_seq|seq_?len|length|^lens?$|^num_|^n_tokens|batch_size|grid|pixel|bbox|^max_"
)

_USUAL = frozenset({torch.int64, torch.int32})
"""Usual dtypes of token ids; narrower ones may hold pixels, sounds or bytes of text."""


def find_tokens(batch: Any) -> Tensor | None:
    """Return the tensor of token ids that a batch feeds to the model, or None.

    By name in a mapping (``input_ids`` first), else the first integer tensor with at least two
    dimensions [B, T], else the first integer tensor. Pictures of whole numbers, positions, lengths
    and masks are no tokens, and labels only where nothing else is.
    """
    found = likely_tokens(leaves(batch))
    return found[0].tensor if found else None


def likely_tokens(of_batch: Iterable[Leaf]) -> list[Leaf]:
    """Return what may hold a batch's tokens, the most likely first."""
    ranked = [(rank, leaf) for leaf in of_batch if (rank := _rank(leaf)) is not None]
    return [leaf for _, leaf in sorted(ranked, key=lambda one: one[0])]


def _rank(leaf: Leaf) -> int | None:
    """Return how likely a tensor is to hold tokens, 0 for the most likely; None: it does not."""
    name, tensor = leaf.name.lower(), leaf.tensor
    if not is_integer(tensor) or _OTHERS.search(name) or is_picture(tensor):
        return None
    one_row = tensor.ndim < 2
    if name in _INPUTS and not (one_row and name in _NAMES_OF_ROWS):
        return _INPUTS.index(name)
    if is_input_ids(name):
        return len(_INPUTS)
    rank = len(_INPUTS) + 1 + 4 * one_row
    if is_target(leaf):
        return rank + 2
    return rank if tensor.dtype in _USUAL else rank + 1


def is_input_ids(name: str) -> bool:
    """Whether a name is ``input_ids`` or one of several, as ``chosen_input_ids`` is."""
    return "input_ids" in name and not name.startswith("decoder")


def is_named_input(leaf: Leaf) -> bool:
    """Whether a tensor is the model's input by its name."""
    name = leaf.name.lower()
    return name in _INPUTS or is_input_ids(name)


def is_target(leaf: Leaf) -> bool:
    """Whether a tensor holds targets by its name."""
    name = leaf.name.lower()
    return name in _TARGETS or any(word in name for word in _OF_TARGETS)


def is_picture(tensor: Tensor) -> bool:
    """Whether whole numbers are those of pictures: [B, C, H, W], or bytes [B, H, W].

    Bytes [B, T] are text.
    """
    if tensor.is_nested:
        return False
    return tensor.ndim > 3 or (tensor.ndim == 3 and tensor.dtype not in _USUAL)


def find_mask(batch: Any, tokens: Tensor) -> Tensor | None:
    """Return the mask of ``tokens`` that is 0 for padding, or None.

    It is called ``attention_mask``, or it is the only other tensor without a name that has the
    tokens' shape and nothing in it but 0 and 1. Reads the data of such a one, so it waits for a
    device.
    """
    if tokens.is_nested:
        return None
    fit = [leaf for leaf in leaves(batch) if leaf.tensor.shape == tokens.shape]
    for leaf in fit:
        if leaf.name == "attention_mask":
            return leaf.tensor
    unnamed = [leaf.tensor for leaf in fit if not leaf.name and leaf.tensor is not tokens]
    if not unnamed or is_binary(tokens):
        return None
    return next((m for one in unnamed if (m := as_padding_mask(one, tokens)) is not None), None)


def integer_tensors(batch: Any) -> Iterator[Tensor]:
    """Yield all integer tensors of a batch, whatever its structure, but for ``attention_mask``."""
    for leaf in leaves(batch):
        if is_integer(leaf.tensor) and leaf.name != "attention_mask":
            yield leaf.tensor
