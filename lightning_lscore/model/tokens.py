"""The training tokens and sequences of this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .batch import find_inputs, find_inputs_of_all, find_tokens

_NOWHERE = torch.Size([0, 0])
"""Shape of tokens whose tensor is not known."""


class TokenCounter:
    """Count the training tokens and sequences of this process, without padding.

    Counting never makes the host wait for the device: a mask on a GPU is summed there, and the sum
    is fetched when ``total`` or ``by_length`` is read.

    Args:
        function: batch -> its number of tokens, for batches whose tokens cannot be found.
        loaders: the Trainer's loaders if there are several, see ``batch.batches_of``.
    """

    def __init__(self, function: Callable[[Any], int] | None = None, loaders: Any = None) -> None:
        self._function = function
        self._loaders = loaders if isinstance(loaders, (list, tuple, Mapping)) else None
        self._whole: dict[torch.Size, int] = {}  # batches without padding, by their shape
        self._host: dict[int, int] = {}  # tokens added up, by the length of their sequences
        self._device: dict[int, Tensor] = {}
        self._samples = 0
        self.batches = 0
        self.uncounted = 0
        """Batches in which no tokens were found."""

    def add(self, batch: Any) -> None:
        """Count one batch."""
        self.batches += 1
        if self._function is not None:
            tokens = find_tokens(batch)
            shape = _NOWHERE if tokens is None else tokens.shape
            self._count(int(self._function(batch)), shape)
            return
        inputs = self._inputs(batch)
        for tokens, mask in inputs:
            self._add(tokens, mask)
        self.uncounted += not inputs

    def add_counted(self, tokens: int) -> None:
        """Count one batch by its number of tokens, where nothing else is known about it."""
        self.batches += 1
        self._count(int(tokens), _NOWHERE)

    def add_with_padding(self, batch: Any) -> dict[int, int]:
        """Count one batch; return its places for tokens, padding too, by length of the sequences.

        With a function they are the tokens that it counts.
        """
        before = {} if self._function is None else {**self.by_length}
        self.add(batch)
        if self._function is not None:
            return {length: n - before.get(length, 0) for length, n in self.by_length.items()}
        unmasked = TokenCounter(None, self._loaders)
        for tokens, _ in unmasked._inputs(batch):
            unmasked._add(tokens, None)
        return {**unmasked.by_length}

    def _inputs(self, batch: Any) -> list[tuple[Tensor, Tensor | None]]:
        several = self._loaders is not None
        return find_inputs_of_all(self._loaders, batch) if several else find_inputs(batch)

    def _add(self, tokens: Tensor, mask: Tensor | None) -> None:
        if tokens.is_nested:
            rows, n = tokens.size(0), tokens.values().numel()
            self._count(n, torch.Size([rows, n // max(1, rows)]))  # by their mean length
        elif mask is None:
            # Added up later: a tensor operation here would cost every step a microsecond.
            shape = tokens.shape
            self._whole[shape] = self._whole.get(shape, 0) + 1
        elif mask.device.type == "cpu":
            self._count(int(mask.sum()), tokens.shape)
        else:
            length = self._count(0, tokens.shape)
            total = mask.sum(dtype=torch.int64)
            sum_before = self._device.get(length)
            self._device[length] = total if sum_before is None else sum_before.add_(total)

    def _count(self, n: int, shape: torch.Size, times: int = 1) -> int:
        rows = shape[0] if len(shape) > 1 else 1
        length = shape[-1] if shape else 1
        self._samples += times * rows
        self._host[length] = self._host.get(length, 0) + times * n
        return length

    def _settle(self) -> None:
        for shape, times in self._whole.items():
            self._count(shape.numel(), shape, times)
        self._whole.clear()

    @property
    def samples(self) -> int:
        """Number of sequences so far."""
        self._settle()
        return self._samples

    @property
    def by_length(self) -> Mapping[int, int]:
        """Tokens so far, by the length of their sequences (with padding; 0: not known).

        Waits for the device if masks are summed there.
        """
        self._settle()
        for length, total in self._device.items():
            self._host[length] = self._host.get(length, 0) + int(total)
        self._device.clear()
        return self._host

    @property
    def total(self) -> int:
        """Tokens so far. Waits for the device if masks are summed there."""
        return sum(self.by_length.values())
