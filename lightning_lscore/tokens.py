"""The tokens in a batch, of whatever shape the user's batches are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Integer tensors under these names are the model's input; an unnamed batch is searched in order.
_INPUT_NAMES = ("input_ids", "tokens", "inputs", "input", "x")


def find_tokens(batch: Any) -> Tensor | None:
    """The tensor of token numbers that a batch feeds to the model, or None.

    By name in a mapping (``input_ids`` first), else the first integer tensor with at least two
    dimensions [B, T], else the first integer tensor.
    """
    if isinstance(batch, Tensor):
        return batch if _is_tokens(batch) else None
    if isinstance(batch, Mapping):
        for name in _INPUT_NAMES:
            value = batch.get(name)
            if isinstance(value, Tensor) and _is_tokens(value):
                return value
    first = None
    for tensor in integer_tensors(batch):
        if tensor.ndim >= 2:
            return tensor
        first = tensor if first is None else first
    return first


def find_mask(batch: Any, tokens: Tensor) -> Tensor | None:
    """The 0/1 attention mask that says which of ``tokens`` are text and which are padding."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.shape == tokens.shape else None


def integer_tensors(batch: Any) -> Iterator[Tensor]:
    """All tensors of integers in nested mappings, sequences and dataclasses."""
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
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


class TokenCounter:
    """Counts the training tokens and sequences of this process, padding apart.

    It never makes the host wait for the device: a mask that lies on a GPU is summed there, and the
    sum is fetched when ``total`` is read.

    Args:
        function: batch -> tokens in it, for batches whose tokens cannot be found.
    """

    def __init__(self, function: Callable[[Any], int] | None = None) -> None:
        self._function = function
        self._host = 0
        self._device: Tensor | None = None
        self.samples = 0
        self.batches = 0
        self.uncounted = 0
        """Batches in which no tokens were found."""

    def add(self, batch: Any) -> None:
        """Counts one batch."""
        self.batches += 1
        tokens = find_tokens(batch)
        if tokens is not None:
            self.samples += tokens.shape[0] if tokens.ndim else 1
        if self._function is not None:
            self._host += int(self._function(batch))
        elif tokens is None:
            self.uncounted += 1
        elif (mask := find_mask(batch, tokens)) is None:
            self._host += tokens.numel()
        elif mask.device.type == "cpu":
            self._host += int(mask.sum())
        else:
            total = mask.sum(dtype=torch.int64)
            self._device = total if self._device is None else self._device.add_(total)

    @property
    def total(self) -> int:
        """Tokens so far. Waits for the device if masks are summed there."""
        if self._device is not None:
            self._host += int(self._device)
            self._device = None
        return self._host
