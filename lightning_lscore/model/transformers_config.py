"""Attention and experts in a transformers config, under the names that models have for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# Kinds of attention layers, and the setting that limits how far a token looks back.
_WHOLE = ("full_attention", "attention", "global", "hybrid")
_WINDOWS = {
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "local": "window_size",  # GPT-Neo
    "chunked_attention": "attention_chunk_size",
    "indexed_attention": "index_topk",  # DeepSeek-V3.2
}


def layer_types(config: Any) -> Sequence[str]:
    """Return the kind of attention in each layer."""
    for name in ("layer_types", "layers_block_type", "attention_layers"):
        types = getattr(config, name, None)
        if isinstance(types, Sequence) and types:
            return list(types)
    sliding = setting(config, "sliding_window") and getattr(config, "use_sliding_window", True)
    kind = "sliding_attention" if sliding else "full_attention"
    return [kind] * int(setting(config, "num_hidden_layers") or 0)


def window_of(kind: str, config: Any) -> float | None:
    """Return how many tokens a layer of this kind attends to at most; None: not known."""
    if kind in _WHOLE:
        return math.inf
    return setting(config, _WINDOWS[kind]) if kind in _WINDOWS else None


def attention_width(config: Any) -> float | None:
    """Return H (Q + V), heads times the size of a query plus that of a value; None: not known."""
    heads, hidden = setting(config, "num_attention_heads"), setting(config, "hidden_size")
    if heads is None:
        return None
    head = setting(config, "head_dim") or (hidden and hidden // heads)
    rope, rest = setting(config, "qk_rope_head_dim"), setting(config, "qk_nope_head_dim")
    query = rope + rest if rope and rest else head  # multi-head latent attention has both
    value = setting(config, "v_head_dim") or head
    return heads * (query + value) if query and value else None


def layer_config(config: Any, layer: int) -> Any:
    """Return the config of one layer: layers may differ."""
    different = getattr(config, "is_heterogeneous", False)
    return config.per_layer_config[layer] if different else config


def number_of_experts(config: Any) -> float | None:
    """Return how many experts a layer holds; None: not known, or it has none."""
    return setting(
        config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"
    )


def setting(config: Any, *names: str) -> float | None:
    """Return the first of these settings that is a number > 0."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and value > 0:
            return value
    return None
