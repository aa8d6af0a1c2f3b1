"""FLOP of one transformers model, from its structure and its config."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from .experts import experts_of
from .parameters import sizes
from .transformers_config import (
    attention_width,
    layer_config,
    layer_types,
    setting,
    window_of,
)


class Structure:
    """Which parameters of a transformers model each token needs, and what attention adds.

    Args:
        model: a ``PreTrainedModel`` that reads tokens.
        learning: ids of all trainable parameters, also of those outside of it.
    """

    def __init__(self, model: Any, learning: set[int]) -> None:
        self.words: list[str] = []
        """Phrases for ``FlopsModel.convention``."""
        self.lacks: list[str] = []
        """Those of them that say what the estimate leaves out or guesses."""
        self.uses: dict[int, float] = {}
        """How many times a token is multiplied with a parameter, by its id; once where absent."""
        self.no_backward: set[int] = set()
        """Ids of parameters that only the forward pass needs."""
        self.per_position: dict[float, float] = {}
        """As in ``FlopsModel``."""

        try:
            config = model.config.get_text_config()
        except ValueError:  # a config with several text models
            self._lack(f"no more is known of {type(model.config).__name__}")
            return
        if config is not model.config:
            self.lacks.append(f"how often the other parts of {type(model).__name__} are used")
        layers = self._layers(model, config)
        frozen = _frozen_below(model, layers, learning)
        for layer in layers[:frozen]:
            self.no_backward.update(sizes(layer))
        if frozen:
            self.words.append(f"forward alone in the {frozen} frozen layers below all that learn")
        self._look_ups(model)
        self._experts(model, config)
        if model.config.is_encoder_decoder:
            name = type(model.config).__name__
            self._lack(f"attention apart: {name} is of an encoder-decoder")
        else:
            self._attention(config, frozen)

    def _lack(self, word: str) -> None:
        self.words.append(word)
        self.lacks.append(word)

    def _layers(self, model: nn.Module, config: Any) -> Sequence[nn.Module]:
        """Return the layers from bottom to top, or none if they cannot be identified."""
        depth, groups = setting(config, "num_hidden_layers"), setting(config, "num_hidden_groups")
        layers, each = _only_list_of(depth, model), 1.0
        if not layers and depth and groups:  # ALBERT: a group of layers for several depths
            layers, each = _only_list_of(groups, model), depth / groups
        uses: dict[int, float] = {}
        for p in (p for layer in layers for p in layer.parameters()):
            uses[id(p)] = uses.get(id(p), 0.0) + each
        for part in {part for layer in layers for part in layer.modules()}:
            if isinstance(part, nn.ModuleList):  # Zamba2: an adapter for each use of the rest
                uses.update({id(p): 1.0 for p in part.parameters() if uses[id(p)] == len(part)})
        repeated = {p: n for p, n in uses.items() if n != 1}
        if repeated:
            self.uses.update(repeated)
            self._lack(f"weights of shared layers up to {max(repeated.values()):g} times")
        if not layers:
            self.lacks.append(f"which parts of {type(model).__name__} are its layers")
        return layers

    def _look_ups(self, model: Any) -> None:
        if model.get_output_embeddings() is None:
            self._lack("embeddings counted like other weights")
            return  # user code may multiply by them
        used = {
            id(p)
            for part in model.modules()
            if not isinstance(part, nn.Embedding)
            for p in part.parameters(recurse=False)
        }
        tables = (part.weight for part in model.modules() if isinstance(part, nn.Embedding))
        self.uses.update((id(table), 0.0) for table in tables if id(table) not in used)
        self.words.append("0 for embeddings that are only looked up")

    def _experts(self, model: Any, config: Any) -> None:
        for experts in experts_of(model, config):
            if experts.share is None:
                self._lack("all experts, as it is not known how many a token needs")
                continue
            for p in experts.parameters:
                self.uses[p] = self.uses.get(p, 1.0) * experts.share
            self.words.append(f"{experts.used:g} of {experts.held:g} experts")

    def _attention(self, config: Any, frozen: int) -> None:
        name = type(config).__name__
        unknown = Counter[str]()
        by_window: dict[float, float] = {}
        types = layer_types(config)
        for i, kind in enumerate(types):
            window, width = window_of(kind, config), attention_width(layer_config(config, i))
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
            self._lack(f"attention apart: {name} tells no number of layers")
        for kind, n in unknown.items():
            self._lack(f"parameters alone in {n} {kind} layers")


def _only_list_of(n: float | None, model: nn.Module) -> list[nn.Module]:
    """Return the only outermost list of ``n`` modules; nothing if there are several."""
    found: list[nn.ModuleList] = []
    inside: set[nn.Module] = set()
    for part in model.modules():
        if part in inside or not isinstance(part, nn.ModuleList):
            continue
        if len(part) == n:
            inside.update(part.modules())
            found.append(part)
    return list(found[0]) if len(found) == 1 else []


def _frozen_below(model: nn.Module, layers: Sequence[nn.Module], learning: set[int]) -> int:
    """Return how many layers need no backward pass, as nothing in or below them is trainable.

    This is known only if all trainable parameters are in the layers or behind them in the model: a
    trained prefix is made elsewhere and enters at the bottom.
    """
    frozen = 0
    inside = [{id(p) for p in layer.parameters()} for layer in layers]
    while frozen < len(inside) and not inside[frozen] & learning:
        frozen += 1
    order = [id(p) for p in model.parameters()]  # as registered: embeddings, layers, output layer
    in_layers = set().union(*inside)
    last = max((i for i, p in enumerate(order) if p in in_layers), default=len(order))
    return frozen if learning <= in_layers.union(order[last:]) else 0
