"""The perplexity of one text, and the settings to state with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..equation.safe_numbers import exp


@dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """What ``evaluate_text`` measured, and how.

    Sum, tokens, bytes and words are those of one span: the text, or without a beginning-of-sequence
    token the text after its first token, which nothing predicts.
    """

    nll_sum: float
    """Sum of the negative log-likelihoods, nats."""
    tokens: int
    """Predicted tokens, each counted once."""
    utf8_bytes: int | None
    """Bytes of the span; None where it is not known where the first token ends."""
    words: int | None
    """Pieces of the span between runs of whitespace; None as for the bytes."""
    context_length: int
    """Tokens that the model reads at most to predict one."""
    stride: int
    """Tokens that a window after the first is scored on."""
    bos: int | None
    """Id of the beginning-of-sequence token that predicts the first one; None: without."""
    full_last: bool
    """Whether the last window begins early enough to be full."""

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, nats per token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nll_sum / tokens); inf beyond the range of a float."""
        return exp(self.nll)

    @property
    def word_perplexity(self) -> float | None:
        """exp(nll_sum / words): compares across tokenizers."""
        return exp(self.nll_sum / self.words) if self.words else None

    @property
    def byte_perplexity(self) -> float | None:
        """exp(nll_sum / bytes): compares across tokenizers."""
        return exp(self.nll_sum / self.utf8_bytes) if self.utf8_bytes else None

    @property
    def bits_per_byte(self) -> float | None:
        """nll_sum / (ln 2 · bytes): compares across tokenizers."""
        return self.nll_sum / (math.log(2) * self.utf8_bytes) if self.utf8_bytes else None

    def __str__(self) -> str:
        start = "without BOS" if self.bos is None else f"BOS {self.bos}"
        return (
            f"perplexity {self.perplexity:.6g} of {self.tokens} tokens"
            f" (context {self.context_length}, stride {self.stride}, {start})"
        )
