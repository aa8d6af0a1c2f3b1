"""FLOP that a model needs to learn from its tokens, however many the machine executes.

A multiplication and the addition behind it are 2 FLOP. Only matrix products count, and each once:
recomputing activations teaches the model nothing. A :class:`FlopsModel` is estimated from the
model's structure (:func:`flops_of`), counted in one training step (``counted_step``), or given by
the user; its ``convention`` states which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from ..equation.safe_numbers import as_number
from .language_models import token_models
from .parameters import sizes, weights
from .structure import Structure

# FLOP per parameter and token (Kaplan et al. 2020, section 2.1): 2 forward, 2 that pass the
# gradient on to what lies below, 2 for the parameter's own gradient.
_FORWARD, _PASS_ON, _LEARN = 2, 2, 2

# Share of the parameters that may be used in unknown ways: a trained prefix, a small head.
_FEW = 0.02


@dataclass(frozen=True, kw_only=True)
class FlopsModel:
    """FLOP of a training token, by the length of its sequence."""

    per_token: float
    """Of products with weights. Units: FLOP per token."""
    per_position: Mapping[float, float] = field(default_factory=dict)
    """Of attention's products of activations, by the window that limits how many tokens a token
    attends to; infinity: the whole sequence. Units: FLOP per token and position attended to."""
    convention: str
    """What is counted, and how: part of a sentence in a record's provenance."""
    lacks: str = field(default="", compare=False)
    """What an estimate leaves out or guesses; a counted step is better then. Empty: nothing."""

    @classmethod
    def given(cls, flops_per_token: float) -> FlopsModel:
        """Return the user's own number. Units: FLOP per training token, forward and backward.

        Raises:
            ValueError: if it is not a finite number > 0.
        """
        number = as_number(flops_per_token)
        if number is None or not 0 < number < math.inf:
            raise ValueError(
                f'flops_per_token: expected a number > 0 or "count", got {flops_per_token!r}.'
            )
        return cls(per_token=number, convention="FLOP per token as given")

    def at(self, length: int) -> float:
        """Return the FLOP of one token in a sequence of ``length`` tokens; 0: length not known."""
        attention = (flops * min(length, window) for window, flops in self.per_position.items())
        return self.per_token + sum(attention)

    def times(self, ratio: float) -> FlopsModel:
        """Return a model that needs this many times as much."""
        per_position = {window: ratio * flops for window, flops in self.per_position.items()}
        return replace(self, per_token=ratio * self.per_token, per_position=per_position)

    def total(self, tokens_by_length: Mapping[int, int]) -> float:
        """Return the FLOP of all tokens, given by the length of their sequences."""
        return float(sum(n * self.at(length) for length, n in tokens_by_length.items()))


def flops_of(module: nn.Module) -> FlopsModel:
    """Estimate the FLOP per token of a model, best before FSDP1 flattens its parameters.

    A trainable parameter counts 6, a frozen one 4. For the transformers models in ``module`` the
    estimate is finer:

    - Embeddings that are only looked up need no product. In other models an embedding may be the
      output layer too, so it counts like any other weight.
    - Frozen layers below all trainable parameters need no backward pass: 2. Above the first adapter
      a frozen weight still passes the gradient on: with LoRA in all layers every weight counts 4.
    - Experts count only as far as a token is routed to them; shared experts always count.
    - Attention, 12 L H Q T: L layers, H heads of size Q, T tokens in the sequence, padding and the
      later half that a causal mask hides included (PaLM, Chowdhery et al. 2022, appendix B). T is
      limited by the sliding window in layers that have one. Where queries and values differ in size
      (MLA) 2 Q is the sum of both. Sequences packed into one row count as one.

    An encoder-decoder counts as if each input token passed through all of it, and without
    attention, because the length of its target is not known. Layers with a recurrent state, and
    the selection step of sparse attention, count by their parameters alone.

    Args:
        module: each token passes through all of its parameters.
    """
    learning = {id(p) for p in module.parameters() if p.requires_grad}
    models = [Structure(model, learning) for model in token_models(module)]
    base = "6 FLOP per trainable parameter and token, 4 per frozen one"
    words = [base, *dict.fromkeys(word for model in models for word in model.words)]
    lacks = [word for model in models for word in model.lacks]
    if not models:
        lacks.append("attention apart: the module holds no transformers model")
        if any(isinstance(part, nn.Embedding) for part in module.modules()):
            lacks.append("embeddings counted like other weights")
        words += lacks
    elif _outside(module) > _FEW:
        lacks.append("what is done with the parameters outside of the transformers model")
    per_position: dict[float, float] = {}
    for model in models:
        for window, flops in model.per_position.items():
            per_position[window] = per_position.get(window, 0.0) + flops
    return FlopsModel(
        per_token=_per_token(module, models),
        per_position=per_position,
        convention="; ".join(words),
        lacks="; ".join(dict.fromkeys(lacks)),
    )


def _outside(module: nn.Module) -> float:
    """Return the share of the parameters that belong to no transformers model that reads tokens."""
    whole = sizes(module)
    inside = {p for model in token_models(module) for p in sizes(model)}
    outside = sum(n for p, n in whole.items() if p not in inside)
    return outside / max(1, sum(whole.values()))


def _per_token(module: nn.Module, models: Sequence[Structure]) -> float:
    uses: dict[int, float] = {}
    no_backward: set[int] = set()
    for model in models:
        uses.update(model.uses)
        no_backward |= model.no_backward
    total = 0.0
    for weight, n in weights(module):
        flops = _FORWARD
        if id(weight) not in no_backward:
            flops += _PASS_ON + (_LEARN if weight.requires_grad else 0)
        total += flops * n * uses.get(id(weight), 1.0)
    return total
