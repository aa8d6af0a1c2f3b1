"""The tokens in a batch, whatever its structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

# Integer tensors under these keys are the model's input; a batch without them is searched in order.
_INPUT_NAMES = ("input_ids", "tokens", "inputs", "input", "x")

# Usual dtypes of token ids.
_USUAL = frozenset({torch.int64, torch.int32})


def find_tokens(batch: Any) -> Tensor | None:
    """Return the tensor of token ids that a batch feeds to the model, or None.

    By name in a mapping (``input_ids`` first), else the first integer tensor with at least two
    dimensions [B, T], else the first integer tensor.
    """
    tokens = _usual(batch)
    return _search(batch) if tokens is None else tokens


def _usual(batch: Any) -> Tensor | None:
    """Return tokens in their usual place: a search would take longer than all else in a step."""
    if isinstance(batch, (list, tuple)):
        value = batch[0] if batch else None
        if isinstance(value, Tensor) and value.dtype in _USUAL and value.ndim >= 2:
            return value
    elif isinstance(batch, Tensor):
        return batch if _is_tokens(batch) else None
    elif isinstance(batch, (dict, Mapping)):  # isinstance of a Mapping is slow: dict comes first
        for name in _INPUT_NAMES:
            value = batch.get(name)
            if isinstance(value, Tensor) and _is_tokens(value):
                return value
    return None


def _search(batch: Any) -> Tensor | None:
    first = None
    for tensor in integer_tensors(batch):
        if tensor.ndim >= 2:
            return tensor
        first = tensor if first is None else first
    return first


def find_mask(batch: Any, tokens: Tensor) -> Tensor | None:
    """Return the 0/1 attention mask of ``tokens``, 0 for padding, or None."""
    if isinstance(batch, (list, tuple)):
        return None
    mask = batch.get("attention_mask") if isinstance(batch, (dict, Mapping)) else None
    fits = isinstance(mask, Tensor) and not tokens.is_nested and mask.shape == tokens.shape
    return mask if fits else None


def find_inputs(batch: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Return every tensor of token ids that a batch feeds to the model, with its mask or None.

    There are several if the batch is a list of micro-batches, or holds a list of sequences.
    """
    tokens = _usual(batch)
    if tokens is not None:
        return [(tokens, find_mask(batch, tokens))]
    labels = None
    if isinstance(batch, (list, tuple)):
        alike = bool(batch) and all(isinstance(b, (dict, Mapping)) for b in batch)
        if alike and all(b.keys() == batch[0].keys() for b in batch):  # unlike inputs and labels
            return [one for b in batch for one in find_inputs(b)]
    elif isinstance(batch, (dict, Mapping)):
        labels, masks = batch.get("labels"), _listed(batch.get("attention_mask"))
        for name in _INPUT_NAMES:
            ids = _listed(batch.get(name))
            if ids and all(isinstance(t, Tensor) and _is_tokens(t) for t in ids):
                each = zip_longest(ids, masks[: len(ids)])
                return [(t, find_mask({"attention_mask": m}, t)) for t, m in each]
    tokens = _search(batch)
    if tokens is None:
        return []
    mask = find_mask(batch, tokens)
    if mask is None and labels is not None and labels is tokens:
        mask = labels >= 0  # with audio or images as input, labels of -100 are padding
    return [(tokens, mask)]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def integer_tensors(batch: Any) -> Iterator[Tensor]:
    """Yield all integer tensors in nested mappings, sequences and dataclasses."""
    if isinstance(batch, Tensor):
        if _is_tokens(batch):
            yield batch
    elif isinstance(batch, Mapping):
        for name, value in batch.items():
            if name != "attention_mask":
                yield from integer_tensors(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for value in batch:
            yield from integer_tensors(value)
    elif dataclasses.is_dataclass(batch):
        yield from integer_tensors(vars(batch))


def _is_tokens(tensor: Tensor) -> bool:
    dtype = tensor.dtype
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def batches_of(loaders: Any, batch: Any) -> list[Any]:
    """Return the batches of all loaders if the Trainer has several: one batch holds them all.

    Args:
        loaders: in nested mappings and sequences. The batch has the same structure, unless the
            module changed it.
        batch: of one step; None stands for an exhausted loader.
    """
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(loaders, Mapping) and isinstance(batch, Mapping):
        if loaders.keys() == batch.keys():
            pairs = [(loader, batch[key]) for key, loader in loaders.items()]
    elif isinstance(loaders, (list, tuple)) and isinstance(batch, (list, tuple)):
        pairs = zip(loaders, batch, strict=True) if len(loaders) == len(batch) else ()
    parts = [one for loader, part in pairs for one in batches_of(loader, part)]
    return parts or ([] if batch is None else [batch])


def find_inputs_of_all(loaders: Any, batch: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Return the inputs, as :func:`find_inputs` does, of the batches of several loaders."""
    found = [inputs for part in batches_of(loaders, batch) if (inputs := find_inputs(part))]
    # If one loader has tokens, one number per sample in another is a label.
    texts = [inputs for inputs in found if len(inputs) > 1 or inputs[0][0].ndim > 1]
    return [one for inputs in texts or found for one in inputs]
