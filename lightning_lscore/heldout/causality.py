"""Whether a model predicts each token from those before it alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .next_token_logits import next_token_logits

# Few, so that a token that sees all of them is moved much by one.
_TOKENS = 8

# What a changed token may cost the others in a causal model, relative to the largest logit: some
# roundings, where experts compute them in other groups, or a Fourier transform mixes them.
_ROUNDINGS, _LEAST = 8, 1e-5


def check_is_causal(model: nn.Module, tokens: Tensor) -> None:
    """Check that the logits of earlier tokens stay the same when a later one changes.

    Otherwise a model sees what it is to predict, and exp of its mean NLL is no perplexity.

    Args:
        model: input_ids [B, T] -> logits [B, T, V], or an object with them as ``logits``.
        tokens: of a text, [T].

    Raises:
        ValueError: an encoder-decoder, or a model whose earlier logits change.
    """
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"expected a causal language model, got {name}, an encoder-decoder: its encoder reads "
            "the whole text before its decoder predicts it. Score such a model on pairs of source "
            "and target, by its decoder's logits, with lightning_lscore.Perplexity."
        )
    if (moved := _moved(model, tokens)) is not None:
        raise ValueError(
            f"expected a causal language model, got {name}, which sees the tokens it is to "
            f"predict: when a later token changes, the logits of earlier ones move by {moved:.2g}. "
            "What it gives is no perplexity. Give a causal model (for transformers' BERT-like ones "
            "with is_decoder=True), or compare masked models by a measure of their own."
        )


def _moved(model: nn.Module, tokens: Tensor) -> float | None:
    """Return by how much earlier logits move with a later token; None: by rounding at most."""
    for some in (tokens[:_TOKENS], tokens):  # a model may take no text so short
        try:
            return _moved_in(model, some)
        except Exception:  # the evaluation will say it better
            continue
    return None


def _moved_in(model: nn.Module, tokens: Tensor) -> float | None:
    other = tokens.clone()
    different = tokens[tokens != tokens[-1]]
    other[-1] = different[0] if len(different) else int(tokens[-1] == 0)
    first, second = _logits(model, tokens), _logits(model, other)
    moved = _distance(first, second)
    rounding = max(_LEAST, _ROUNDINGS * _epsilon(model, first))
    if not moved > rounding * float(first.abs().max()):
        return None
    # One that remembers earlier calls, or draws at random, moves without any change as well.
    return moved if _distance(first, _logits(model, tokens)) < moved / 2 else None


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = next_token_logits(model, tokens[None], len(tokens))[0]
    return logits


def _distance(one: Tensor, other: Tensor) -> float:
    """Return how far all logits but the last are apart; 0 where a model returns the last alone."""
    apart = (one[:-1].double() - other[:-1].double()).abs()
    return float(apart.max()) if apart.numel() else 0.0


def _epsilon(model: nn.Module, logits: Tensor) -> float:
    """Return the relative rounding error of the coarsest type that a model computes in."""
    types = {logits.dtype, *(p.dtype for p in model.parameters() if p.is_floating_point())}
    # Weights in 8 bits are computed with in 16.
    return min(max(torch.finfo(kind).eps for kind in types), torch.finfo(torch.bfloat16).eps)
