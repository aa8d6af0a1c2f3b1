"""One pass over the held-out set: what was counted, on one rank and over all of them.

:class:`HeldOut` takes in logits and labels of one validation loader on one rank;
:class:`Evaluation` is the sum over ranks, in plain numbers, with a fingerprint of the set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..equation.safe_numbers import exp
from .perplexity import Perplexity

_BITS = (1 << 40) - 1  # of a fingerprint: sums of some thousand ranks stay exact in a float64


class HeldOut:
    """NLL, tokens, bytes and fingerprint of one validation loader, on this rank.

    Args:
        ignore_index: label of the positions that are not counted.
        device: where the sums lie.
        count_bytes: function of the counted token ids [n] -> bytes of their text.
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
        self._bytes = 0
        self._fingerprint: Tensor | None = None
        self._longest: Tensor | None = None

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds logits [B, T, V] and, for each of them, the token that came next [B, T]."""
        self._perplexity.update(logits, labels)
        if not labels.numel():
            return
        counted = labels != self._ignore_index
        mark, longest = fingerprint(labels, counted), counted.sum(-1).max()
        # Sums stay on the device: nothing here makes the host wait for it.
        self._fingerprint = mark if self._fingerprint is None else self._fingerprint + mark
        self._longest = longest if self._longest is None else self._longest.maximum(longest)
        if self._count_bytes is not None:
            self._bytes += int(self._count_bytes(labels[counted]))

    def numbers(self) -> list[float]:
        """The sums so far; waits for the device.

        Raises:
            ValueError: if labels on a GPU were outside of the vocabulary.
        """
        self._perplexity.nll()
        mark, longest = self._fingerprint, self._longest
        return [
            float(self._perplexity.nll_sum),
            int(self._perplexity.count),
            self._bytes,
            0 if mark is None else int(mark) & _BITS,
            0 if longest is None else int(longest),
        ]


def fingerprint(labels: Tensor, counted: Tensor) -> Tensor:
    """A number that tells sets of sequences apart; an int64 scalar, of which 40 bits count.

    The sum of a hash of each counted label and the one before it. Neither the order of sequences
    nor their division into batches and ranks changes it; another text, another tokenizer, or
    another length of sequences does.
    """
    labels = labels.long()
    before = torch.zeros_like(labels)
    before[:, 1:] = torch.where(counted[:, :-1], labels[:, :-1] + 1, 0)
    # Multiply and fold as in splitmix64; int64 wraps around.
    h = labels * -7046029254386353131 + before * -4658895280553007687
    h = (h ^ (h >> 31)) * -7723592293110705685
    return (torch.where(counted, h ^ (h >> 27), 0) & _BITS).sum()


@dataclass(frozen=True)
class Evaluation:
    """One pass over the held-out set, over all ranks; one entry for each validation loader."""

    nll_sums: tuple[float, ...]
    tokens: tuple[int, ...]
    source: str
    """How logits and labels were found."""
    bytes: tuple[int, ...] | None = None
    """Of the counted tokens; None where nobody counts them."""
    fingerprints: tuple[str, ...] = ()
    """Equal where the same sequences of tokens were counted, see :func:`fingerprint`."""
    longest: tuple[int, ...] = ()
    """Most counted tokens in one sequence."""

    @classmethod
    def over_ranks(
        cls, ranks: Sequence[Sequence[Sequence[float]]], source: str, *, with_bytes: bool
    ) -> Evaluation:
        """From :meth:`HeldOut.numbers` of each loader of each rank."""
        loaders = [list(zip(*parts, strict=True)) for parts in zip(*ranks, strict=True)]
        return cls(
            nll_sums=tuple(math.fsum(nll) for nll, *_ in loaders),
            tokens=tuple(int(sum(tokens)) for _, tokens, *_ in loaders),
            source=source,
            bytes=tuple(int(sum(b)) for _, _, b, *_ in loaders) if with_bytes else None,
            fingerprints=tuple(f"{int(sum(mark)) & _BITS:010x}" for *_, mark, _ in loaders),
            longest=tuple(int(max(longest)) for *_, longest in loaders),
        )

    @property
    def total_tokens(self) -> int:
        """Counted tokens of all loaders."""
        return sum(self.tokens)

    @property
    def nll(self) -> float:
        """Mean NLL over all tokens of all loaders, in nats; NaN without a token."""
        return _mean(math.fsum(self.nll_sums), self.total_tokens)

    @property
    def perplexity(self) -> float:
        """Over all tokens of all loaders."""
        return exp(self.nll)

    @property
    def perplexities(self) -> tuple[float, ...]:
        """Of each loader by itself."""
        return tuple(exp(_mean(s, n)) for s, n in zip(self.nll_sums, self.tokens, strict=True))

    @property
    def bits_per_byte(self) -> float | None:
        """NLL in bits over the bytes of the same tokens; None where it is no number."""
        total = sum(self.bytes or ())
        bits = math.fsum(self.nll_sums) / math.log(2) / total if total else math.nan
        return bits if math.isfinite(bits) else None

    def provenance(self) -> str:
        """Where the perplexity came from and what, if anything, is wrong with it."""
        if not self.total_tokens:
            return f"measured: {self.source}; NaN because no held-out token was counted"
        if math.isnan(self.nll):
            return f"measured: {self.source}; NaN because a logit was NaN or +infinity"
        if math.isinf(self.nll):
            return f"measured: {self.source}; infinite because a held-out token has probability 0"
        return f"measured: {self.source}"

    def to_dict(self) -> dict[str, Any]:
        """For the record, as JSON types."""
        return {
            "tokens": list(self.tokens),
            "perplexities": list(self.perplexities),
            "source": self.source,
            "bytes": None if self.bytes is None else list(self.bytes),
            "fingerprints": list(self.fingerprints),
            "longest": list(self.longest),
        }


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan
