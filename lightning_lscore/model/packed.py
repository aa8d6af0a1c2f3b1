"""Weights that a quantiser has packed: how many numbers they stand for, by its own state.

Libraries keep several weights of few bits in one element of a tensor, which may be a parameter
(bitsandbytes, HQQ, compressed-tensors) or a buffer (GPTQ, AWQ). Tensor subclasses that have the
shape of the weight, such as torchao's, are not packed in this sense.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_OF_BITS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32})


def packed(part: nn.Module) -> Iterator[tuple[Tensor, int | None]]:
    """Yield the packed tensors that ``part`` itself holds, with how many weights they stand for.

    What belongs to the quantiser (scales, zeros, indices) stands for 0; None: not known. Tensors
    that are not named count by their elements.
    """
    held = {n: t for n, t in {**part._parameters, **part._buffers}.items() if t is not None}
    for tensor in held.values():
        shape = getattr(getattr(tensor, "quant_state", None), "shape", None)  # bitsandbytes
        if shape is not None:
            yield tensor, math.prod(shape)
            return
    meta: Any = getattr(part, "meta", None)
    if "W_q" in held and isinstance(meta, Mapping) and "shape" in meta:  # HQQ
        yield held["W_q"], math.prod(meta["shape"])
        return
    bits = [name for name, t in held.items() if t.dtype in _OF_BITS and t.ndim >= 2]
    if bits:
        yield from _of_a_layer(part, held, max(bits, key=lambda name: held[name].numel()))


def _of_a_layer(
    part: nn.Module, held: Mapping[str, Tensor], weight: str
) -> Iterator[tuple[Tensor, int | None]]:
    """GPTQ, AWQ and others: a layer that says how many features go in and out."""
    size = _features(part, "in") * _features(part, "out")
    if not size:
        is_weight = isinstance(held[weight], nn.Parameter) or "weight" in weight
        if is_weight:
            yield held[weight], None
    elif not any(t.is_floating_point() and t.numel() == size for t in held.values()):
        for name, tensor in held.items():
            yield tensor, size if name == weight else tensor.numel() if name == "bias" else 0


def _features(part: nn.Module, side: str) -> int:
    for name in (f"{side}_features", f"{side}features"):
        n = getattr(part, name, None)
        if isinstance(n, int):
            return n
    return 0
