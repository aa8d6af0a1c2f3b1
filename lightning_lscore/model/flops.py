"""FLOP that a model needs to learn from its tokens, whatever the machine spends on them.

A multiplication and the addition behind it are 2 FLOP. Only matrix products count, and each once:
what activation checkpointing computes again is no more learning. A :class:`FlopsModel` is estimated
from the model's structure (:func:`flops_of`), counted in one training step (``counted_step``),
or given by the user, and says in its ``convention`` which.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..equation.safe_numbers import as_number
from .parameters import sizes

# FLOP per parameter and token (Kaplan et al. 2020, section 2.1): 2 forward, 2 that pass the
# gradient on to what lies below, 2 for the parameter's own gradient.
_FORWARD, _PASS_ON, _LEARN = 2, 2, 2

# Layers by their name in a transformers config: what of the sequence a token looks at.
_WHOLE = ("full_attention", "attention", "global", "hybrid")
_WINDOWS = {
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "local": "window_size",  # GPT-Neo
    "chunked_attention": "attention_chunk_size",
    "indexed_attention": "index_topk",  # DeepSeek-V3.2
}


@dataclass(frozen=True, kw_only=True)
class FlopsModel:
    """How many FLOP a training token needs, by the length of the sequence that it stands in."""

    per_token: float
    """Of products with weights. Units: FLOP per token."""
    per_position: Mapping[float, float] = field(default_factory=dict)
    """Of attention's products of activations, by the window that limits what a token looks at in
    tokens; infinity: the whole sequence. Units: FLOP per token and position that it looks at."""
    convention: str
    """What was counted, and how: part of a sentence, for a record's provenance."""

    @classmethod
    def given(cls, flops_per_token: float) -> FlopsModel:
        """What the user says. Units: FLOP per training token, forward and backward.

        Raises:
            ValueError: if it is no finite number > 0.
        """
        number = as_number(flops_per_token)
        if number is None or not 0 < number < math.inf:
            raise ValueError(
                f'flops_per_token: expected a number > 0 or "count", got {flops_per_token!r}.'
            )
        return cls(per_token=number, convention="FLOP per token as given")

    def at(self, length: int) -> float:
        """FLOP for one token in a sequence of ``length`` tokens; 0: not known."""
        attention = (flops * min(length, window) for window, flops in self.per_position.items())
        return self.per_token + sum(attention)

    def total(self, tokens_by_length: Mapping[int, int]) -> float:
        """FLOP for so many tokens, by the length of their sequences."""
        return float(sum(n * self.at(length) for length, n in tokens_by_length.items()))


def flops_of(module: nn.Module) -> FlopsModel:
    """The FLOP per token of a model, best before FSDP1 makes one parameter of several.

    In general 6 for each trainable parameter and 4 for each frozen one. More is known of the
    transformers models in ``module``:

    - Embeddings that are only looked up need no product. Elsewhere it cannot be told whether their
      weights are the output layer too, and they count like any other.
    - Frozen layers below everything that learns need no backward pass: 2. Above the first adapter
      a frozen weight still passes the gradient on, so with LoRA in all layers it is 4 for all.
    - Of experts, those that a token is routed to; shared ones are always there.
    - Attention, 12 L H Q T: L layers, H heads of size Q, T tokens in the sequence, padding and the
      later half that a causal mask hides included (PaLM, Chowdhery et al. 2022, appendix B). T is
      at most the sliding window in layers that have one. Where queries and values differ in size
      (MLA) 2 Q is the sum of both. Sequences packed into one row count as one.

    An encoder-decoder counts as if each token of its input passed through all of it, and without
    attention, as the length of its target is not known. Layers with a recurrent state, and the
    selection of sparse attention, count by their parameters alone.

    Args:
        module: whose parameters all see each token.
    """
    learning = {id(p) for p in module.parameters() if p.requires_grad}
    models = [_Model(model, learning) for model in _token_models(module)]
    base = "6 FLOP per trainable parameter and token, 4 per frozen one"
    words = [base, *dict.fromkeys(word for model in models for word in model.words)]
    if not models:
        words.append("attention apart: the module holds no transformers model")
        if any(isinstance(part, nn.Embedding) for part in module.modules()):
            words.append("embeddings counted like other weights")
    per_position: dict[float, float] = {}
    for model in models:
        for window, flops in model.per_position.items():
            per_position[window] = per_position.get(window, 0.0) + flops
    return FlopsModel(
        per_token=_per_token(module, models),
        per_position=per_position,
        convention="; ".join(words),
    )


def _per_token(module: nn.Module, models: Sequence[_Model]) -> float:
    shares: dict[int, float] = {}
    no_backward: set[int] = set()
    for model in models:
        shares.update(model.shares)
        no_backward |= model.no_backward
    total, whole = 0.0, sizes(module)
    for p in module.parameters():
        flops = _FORWARD
        if id(p) not in no_backward:
            flops += _PASS_ON + (_LEARN if p.requires_grad else 0)
        total += flops * whole[id(p)] * shares.get(id(p), 1.0)
    return total


class _Model:
    """What the structure and the config of one transformers model tell about its FLOP.

    Args:
        model: a ``PreTrainedModel`` that reads tokens.
        learning: ids of all trainable parameters, also of those outside of it.
    """

    def __init__(self, model: Any, learning: set[int]) -> None:
        self.words: list[str] = []
        """For the convention."""
        self.shares: dict[int, float] = {}
        """Of a parameter, by its id, the share that a token needs where that is not all."""
        self.no_backward: set[int] = set()
        """Ids of parameters that only the forward pass needs."""
        self.per_position: dict[float, float] = {}
        """As in :class:`FlopsModel`."""

        try:
            config = model.config.get_text_config()
        except ValueError:  # one with several texts
            self.words.append(f"no more is known of {type(model.config).__name__}")
            return
        layers = _layers(model, config)
        frozen = _frozen_below(model, layers, learning)
        for layer in layers[:frozen]:
            self.no_backward.update(id(p) for p in layer.parameters())
        if frozen:
            self.words.append(f"forward alone in the {frozen} frozen layers below all that learn")
        self._look_ups(model)
        self._experts(model, config)
        if model.config.is_encoder_decoder:
            name = type(model.config).__name__
            self.words.append(f"attention apart: {name} is of an encoder-decoder")
        else:
            self._attention(config, frozen)

    def _look_ups(self, model: Any) -> None:
        if model.get_output_embeddings() is None:
            self.words.append("embeddings counted like other weights")
            return  # the user's own code may multiply by them
        used = {
            id(p)
            for part in model.modules()
            if not isinstance(part, nn.Embedding)
            for p in part.parameters(recurse=False)
        }
        tables = (part.weight for part in model.modules() if isinstance(part, nn.Embedding))
        self.shares.update((id(table), 0.0) for table in tables if id(table) not in used)
        self.words.append("0 for embeddings that are only looked up")

    def _experts(self, model: Any, config: Any) -> None:
        routed = [part for name, part in model.named_modules() if name.endswith(".experts")]
        k = _setting(config, "num_experts_per_tok", "top_k_experts", "moe_topk")
        for experts in routed:
            n = len(experts) if isinstance(experts, nn.ModuleList) else _number_of(experts, config)
            if k is None or n is None or not 0 < k <= n:
                self.words.append("all experts, as it is not known how many a token needs")
            else:
                self.shares.update((id(p), k / n) for p in experts.parameters())
                self.words.append(f"{k:g} of {n:g} experts")

    def _attention(self, config: Any, frozen: int) -> None:
        name = type(config).__name__
        unknown = Counter[str]()
        by_window: dict[float, float] = {}
        types = _layer_types(config)
        for i, kind in enumerate(types):
            window, width = _window(kind, config), _width(_layer_config(config, i))
            if window is None or width is None:
                unknown[kind] += 1
                continue
            # 2 FLOP for each of the 2 products, of queries and keys and of weights and values.
            # Both have two of their kind in the backward pass.
            by_window[window] = by_window.get(window, 0.0) + width * (2 if i < frozen else 6)
        self.per_position = by_window
        if by_window:
            limits = [f"{w:g}" for w in sorted(by_window) if w < math.inf]
            limit = f", T at most {' or '.join(limits)} in layers with that window" * bool(limits)
            self.words.append(f"12 L H Q T for attention (from {name}{limit})")
        if not types:
            self.words.append(f"attention apart: {name} tells no number of layers")
        for kind, n in unknown.items():
            self.words.append(f"parameters alone in {n} {kind} layers")


def _token_models(module: nn.Module) -> list[Any]:
    """The outermost transformers models that read tokens; none if transformers is not in use."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return []
    found: list[Any] = []
    inside: set[nn.Module] = set()
    for part in module.modules():  # parents come before their children
        if part in inside or not isinstance(part, transformers.PreTrainedModel):
            continue
        inside.update(part.modules())
        if _reads_tokens(part):
            found.append(part)
    return found


def _reads_tokens(model: Any) -> bool:
    try:
        inputs = model.get_input_embeddings()
    except NotImplementedError:  # as models of images and sounds do
        return False
    parts = inputs.modules() if isinstance(inputs, nn.Module) else ()
    return any(isinstance(part, nn.Embedding) for part in parts)  # adapters may wrap it


def _layers(model: nn.Module, config: Any) -> Sequence[nn.Module]:
    """The model's layers from bottom to top; none where it is not clear which they are."""
    found: list[nn.ModuleList] = []
    inside: set[nn.Module] = set()
    for part in model.modules():
        if part in inside or not isinstance(part, nn.ModuleList):
            continue
        if len(part) == getattr(config, "num_hidden_layers", None):
            inside.update(part.modules())
            found.append(part)
    return list(found[0]) if len(found) == 1 else []


def _frozen_below(model: nn.Module, layers: Sequence[nn.Module], learning: set[int]) -> int:
    """How many of the layers need no backward pass, as nothing in or below them learns.

    Known only if all that learns is in the layers or behind them in the model: a trained prefix,
    say, is made elsewhere and enters at the bottom.
    """
    frozen = 0
    inside = [{id(p) for p in layer.parameters()} for layer in layers]
    while frozen < len(inside) and not inside[frozen] & learning:
        frozen += 1
    order = [id(p) for p in model.parameters()]  # as registered: embeddings, layers, output layer
    in_layers = set().union(*inside)
    last = max((i for i, p in enumerate(order) if p in in_layers), default=len(order))
    return frozen if learning <= in_layers.union(order[last:]) else 0


def _layer_types(config: Any) -> Sequence[str]:
    """The kind of attention in each layer."""
    for name in ("layer_types", "layers_block_type", "attention_layers"):
        types = getattr(config, name, None)
        if isinstance(types, Sequence) and types:
            return list(types)
    sliding = _setting(config, "sliding_window") and getattr(config, "use_sliding_window", True)
    kind = "sliding_attention" if sliding else "full_attention"
    return [kind] * int(_setting(config, "num_hidden_layers") or 0)


def _window(kind: str, config: Any) -> float | None:
    """How many tokens a layer of this kind looks at, at most; None: not known."""
    if kind in _WHOLE:
        return math.inf
    return _setting(config, _WINDOWS[kind]) if kind in _WINDOWS else None


def _width(config: Any) -> float | None:
    """H (Q + V): the heads, times the size of a query and of a value; None: not known."""
    heads, hidden = _setting(config, "num_attention_heads"), _setting(config, "hidden_size")
    if heads is None:
        return None
    head = _setting(config, "head_dim") or (hidden and hidden // heads)
    rope, rest = _setting(config, "qk_rope_head_dim"), _setting(config, "qk_nope_head_dim")
    query = rope + rest if rope and rest else head  # multi-head latent attention has both
    value = _setting(config, "v_head_dim") or head
    return heads * (query + value) if query and value else None


def _layer_config(config: Any, layer: int) -> Any:
    """The config of one layer, where layers differ."""
    different = getattr(config, "is_heterogeneous", False)
    return config.per_layer_config[layer] if different else config


def _number_of(experts: nn.Module, config: Any) -> float | None:
    """How many experts are stacked in a module."""
    n = getattr(experts, "num_experts", None)
    if isinstance(n, int):
        return n
    return _setting(config, "num_experts", "num_local_experts", "n_routed_experts")


def _setting(config: Any, *names: str) -> float | None:
    """The first of these settings that is a number > 0."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and value > 0:
            return value
    return None
