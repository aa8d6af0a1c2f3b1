"""The held-out set of one validation loader on one rank: logits and labels go in, sums come out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .fingerprint import BITS, fingerprint
from .perplexity import Perplexity
from .rows import Rows, given_rows, measure_rows


class HeldOut:
    """NLL, tokens, bytes and fingerprint of one validation loader, on this rank.

    Args:
        ignore_index: label of the positions that are not counted.
        device: where the sums lie.
        count_bytes: counted token ids [n] -> bytes of their text.
        compile: see :func:`~lightning_lscore.heldout.nll.row_nll`.
    """

    NUMBERS = ("nll_sum", "tokens", "bytes", "fingerprint", "longest")
    """What :meth:`numbers` returns."""

    def __init__(
        self,
        ignore_index: int,
        device: torch.device,
        count_bytes: Callable[[Tensor], int] | None = None,
        compile: bool = False,
    ) -> None:
        perplexity = Perplexity(ignore_index, compile=compile, sync_on_compute=False)
        self._perplexity = perplexity.to(device)
        self._ignore_index = ignore_index
        self._count_bytes = count_bytes
        self._bytes: float = 0
        self.bytes_error: Exception | None = None
        """What ``count_bytes`` raised, after which bytes are unknown."""
        self._fingerprint: Tensor | None = None
        self._longest: Tensor | None = None

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits and, for each row, the label that it predicts; this shifts nothing.

        Args:
            logits: [..., V], with any number of leading dimensions: [B, T, V], [T, V], [V], ...
            labels: [...]; the last dimension is the sequence.

        Raises:
            TypeError, ValueError: those of :func:`~lightning_lscore.heldout.nll.row_nll`.
        """
        compile = self._perplexity.compiled
        self._add(measure_rows(logits, labels, self._ignore_index, compile), labels)

    def update_nll(self, nll: Tensor, labels: Tensor) -> None:
        """Add NLL that is already known.

        Args:
            nll: nats, [...] like the labels, or a scalar, the mean over counted labels.
            labels: [...], as for :meth:`update`.

        Raises:
            TypeError: NLL that is not floating point.
            ValueError: NLL of another shape, logits for example.
        """
        self._add(given_rows(nll, labels, self._ignore_index), labels)

    def _add(self, rows: Rows, labels: Tensor) -> None:
        self._perplexity.add_rows(rows)
        if not labels.numel():
            return
        labels = labels if labels.ndim else labels[None]
        counted = labels != self._ignore_index
        mark, longest = fingerprint(labels, counted), counted.sum(-1).max()
        # Sums stay on the device, and the host does not wait for it.
        self._fingerprint = mark if self._fingerprint is None else self._fingerprint + mark
        self._longest = longest if self._longest is None else self._longest.maximum(longest)
        if self._count_bytes is not None and self.bytes_error is None:
            try:
                self._bytes += int(self._count_bytes(labels[counted]))
            except Exception as error:  # bits per byte are an extra: they end no validation
                self.bytes_error, self._bytes = error, math.nan

    def numbers(self) -> list[float]:
        """Return the sums so far; waits for the device.

        Raises:
            ValueError: if labels on a GPU were outside of the vocabulary.
        """
        self._perplexity.nll()
        mark, longest = self._fingerprint, self._longest
        return [
            float(self._perplexity.nll_sum),
            int(self._perplexity.count),
            self._bytes,
            0 if mark is None else int(mark) & BITS,
            0 if longest is None else int(longest),
        ]
