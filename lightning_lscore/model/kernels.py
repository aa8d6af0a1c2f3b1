"""FLOP of kernels by the shapes of their arguments, where PyTorch's own formulas do not do.

PyTorch has none for recurrent kernels, and its own for attention's backward pass also counts the
scores that are recomputed. Like PyTorch's and 12 L H Q T these formulas include the products that a
causal mask hides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

Shape = Sequence[int]

_ATTENTION = [
    f"_scaled_dot_product_{kernel}_attention{device}"
    for kernel in ("flash", "efficient", "cudnn", "fused")
    for device in ("", "_for_cpu", "_overrideable")
]


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward_flops(
    grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    return 2 * _attention_flops(query, key, value)


def _flex_backward_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * _attention_flops(query, key, value)


def _grouped_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Products of all experts; an argument that is not stacked holds rows or columns of each."""
    return 2 * math.prod(a if len(b) == 3 else a[-2:]) * b[-1]


def _integer_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * math.prod(b[1:])


def _layer_flops(input: Shape, *weights: Any, **_: Any) -> int:
    """One layer of an RNN on a CPU, input [T, B, I]: each weight matrix once for each token."""
    matrices = (w for w in weights[:2] if len(w) == 2)
    return 2 * math.prod(input[:-1]) * sum(map(math.prod, matrices))


def _layer_backward_flops(input: Shape, *weights: Any, **_: Any) -> int:
    return 2 * _layer_flops(input, *weights)


def _rnn_flops(input: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    """All layers of an RNN on a GPU, input [T, B, I] or [B, T, I]."""
    return 2 * math.prod(input[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)


def _rnn_backward_flops(input: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * _rnn_flops(input, weights)


_FORMULAS: dict[str, Callable[..., int]] = {
    "_grouped_mm": _grouped_flops,
    "_int_mm": _integer_flops,
    "mv": _integer_flops,
    "mkldnn_rnn_layer": _layer_flops,
    "mkldnn_rnn_layer_backward": _layer_backward_flops,
    "_cudnn_rnn": _rnn_flops,
    "_cudnn_rnn_backward": _rnn_backward_flops,
    "miopen_rnn": _rnn_flops,
    "miopen_rnn_backward": _rnn_backward_flops,
    **dict.fromkeys(_ATTENTION, _attention_flops),
    **{f"{name}_backward": _attention_backward_flops for name in _ATTENTION},
}


def _operators(named: dict[str, Any]) -> dict[Any, Any]:
    known = ((getattr(torch.ops.aten, name, None), value) for name, value in named.items())
    return {operator: value for operator, value in known if operator is not None}


def kernels() -> dict[Any, Callable[..., int]]:
    """Return the formulas by operator, for those that this version of PyTorch has."""
    found = _operators(_FORMULAS)
    for name, formula in (("", _attention_flops), ("_backward", _flex_backward_flops)):
        operator = getattr(torch.ops.higher_order, f"flex_attention{name}", None)
        if operator is not None:
            found[operator] = formula
    return found


# Where the two factors stand among the arguments of products that may be attention's.
_FACTORS: dict[Any, int] = _operators(
    {"bmm": 0, "baddbmm": 1}
    | dict.fromkeys(_ATTENTION, 0)
    | {f"{name}_backward": 1 for name in _ATTENTION}
)


def dims_of(operator: Any, args: Sequence[Any]) -> tuple[int, ...]:
    """Return the dimensions of a product of activations that may be the length of a sequence.

    Empty for products with weights, which are of two dimensions, or a batch of one.
    """
    first = _FACTORS.get(operator, 0 if "flex_attention" in str(operator) else None)
    if first is None:
        return ()
    a, b = args[first].shape, args[first + 1].shape
    if len(a) == 3:  # bmm
        return (*a[1:], b[-1]) if a[0] > 1 else ()
    return a[-2], b[-2]
