"""Tokens and sequences, added up without waiting for a device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Tally:
    """Tokens by the length of their sequences, and the number of these."""

    def __init__(self) -> None:
        self.samples = 0
        """Sequences so far."""
        self._host: dict[int, int] = {}
        self._device: dict[int, Tensor] = {}

    def add(self, n: int | Tensor, shape: torch.Size, times: int = 1) -> None:
        """Add the tokens of a batch.

        Args:
            n: tokens, on any device: it is fetched when the sums are read.
            shape: [..., T] of the ids, padding included.
            times: so many batches of them.
        """
        length = length_of(shape)
        self.samples += times * (shape[0] if len(shape) > 1 else 1)
        if isinstance(n, int) or n.device.type == "cpu":
            self._host[length] = self._host.get(length, 0) + times * int(n)
        else:
            before = self._device.get(length)
            self._device[length] = n * times if before is None else before.add_(n * times)

    @property
    def by_length(self) -> Mapping[int, int]:
        """Tokens so far, by the length of their sequences. Waits for the device."""
        for length, total in self._device.items():
            self._host[length] = self._host.get(length, 0) + int(total)
        self._device.clear()
        return self._host


def length_of(shape: torch.Size) -> int:
    """Return T of the shape [..., T] of ids; 1 for a single one."""
    return shape[-1] if shape else 1
