"""One pass over the held-out set: sums over all ranks, in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..equation.evidence import EvaluationSet
from ..equation.safe_numbers import exp
from .fingerprint import BITS


@dataclass(frozen=True)
class Evaluation:
    """One pass over the held-out set, over all ranks; one entry for each validation loader."""

    nll_sums: tuple[float, ...]
    tokens: tuple[int, ...]
    source: str
    """How logits and labels were found."""
    bytes: tuple[int, ...] | None = None
    """Bytes of the counted tokens; None without a tokenizer to count them."""
    fingerprints: tuple[str, ...] = ()
    """Equal where the same sequences of tokens were counted."""
    longest: tuple[int, ...] = ()
    """Most counted tokens in one sequence."""

    @classmethod
    def over_ranks(
        cls, ranks: Sequence[Sequence[Sequence[float]]], source: str, *, with_bytes: bool
    ) -> Evaluation:
        """Add up ``HeldOut.numbers()`` of each loader of each rank."""
        loaders = [list(zip(*parts, strict=True)) for parts in zip(*ranks, strict=True)]
        known = not any(math.isnan(b) for _, _, each, *_ in loaders for b in each)
        return cls(
            nll_sums=tuple(math.fsum(nll) for nll, *_ in loaders),
            tokens=tuple(int(sum(tokens)) for _, tokens, *_ in loaders),
            source=source,
            bytes=tuple(int(sum(b)) for _, _, b, *_ in loaders) if with_bytes and known else None,
            fingerprints=tuple(f"{int(sum(mark)) & BITS:010x}" for *_, mark, _ in loaders),
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
        """Perplexity over all tokens of all loaders."""
        return exp(self.nll)

    @property
    def perplexities(self) -> tuple[float, ...]:
        """Perplexity of each loader."""
        return tuple(exp(_mean(s, n)) for s, n in zip(self.nll_sums, self.tokens, strict=True))

    @property
    def bits_per_byte(self) -> float | None:
        """NLL in bits per byte of the same tokens; None if it is not finite."""
        total = sum(self.bytes or ())
        bits = math.fsum(self.nll_sums) / math.log(2) / total if total else math.nan
        return bits if math.isfinite(bits) else None

    def provenance(self) -> str:
        """Return how the perplexity was measured, and what is wrong with it if anything is."""
        if not self.total_tokens:
            return f"measured: {self.source}; NaN because no held-out token was counted"
        if math.isnan(self.nll):
            return f"measured: {self.source}; NaN because a logit was NaN or +infinity"
        if math.isinf(self.nll):
            return f"measured: {self.source}; infinite because a held-out token has probability 0"
        return f"measured: {self.source}"

    def summary(self) -> EvaluationSet:
        """Return what a record keeps of the set."""
        return EvaluationSet(
            tokens=self.tokens,
            perplexities=self.perplexities,
            source=self.source,
            bytes=self.bytes,
            fingerprints=self.fingerprints,
            longest=self.longest,
        )


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan
