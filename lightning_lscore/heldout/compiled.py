"""Sums of exponentials as one compiled loop, on a GPU as one kernel."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .numerics import LOG2E

# Terms that the compiled kernel adds up in one go: in long sums the small terms would be lost.
_BLOCK = 1024


def compiled_sums(x: Tensor, power: Tensor, runs: list[list[int]]) -> Tensor | None:
    """As ``buffered_sums``, in one loop; None where that cannot be had."""
    # No short rows: a number of blocks of 0 or 1 would be built anew, for nothing.
    if x.shape[1] < 2 * _BLOCK or x.dtype == torch.float64 or x.stride(1) != 1:
        return None
    total = torch.ones_like(power)
    for start, stop in runs:
        a, b = max(0, min(start, stop - 2)), max(stop, 2)
        sums = fused(_block_sums, x[a:b], power[a:b])
        if sums is None:
            return None
        total[a:b] = sums
    return total.double()


def _block_sums(x: Tensor, power: Tensor) -> Tensor:
    n, v = x.shape
    k = v // _BLOCK
    # From 16-bit logits the compiler makes pairs of vectors, and the library's is the faster loop.
    powers = _powers if x.dtype == torch.float32 else _library_powers
    blocks = powers(x[:, : k * _BLOCK].view(n, k, _BLOCK), power[:, None, None])
    return blocks.sum(-1).sum(-1) + powers(x[:, k * _BLOCK :], power[:, None]).sum(-1)


def _library_powers(x: Tensor, power: Tensor) -> Tensor:
    return torch.exp2(x.float() * LOG2E - power)


def _powers(x: Tensor, power: Tensor) -> Tensor:
    """exp2(x log2 e - power) of float32, |power| < 2^8 and whole, to 1e-7, to be compiled.

    2^(n + f) = 2^n 2^f with n whole and |f| <= 1/2. A number of 2^23 and more has no digits behind
    the point, and its last bits are those of an integer: added to one, x log2 e - power is rounded
    to n, and 9 bits, moved to where the exponent is, are 2^n. 2^f is a polynomial of degree 6 with
    the least relative error (2e-9, by Remez' exchange). Beyond +-126 it stands still: less counts
    for nothing, more is found in the sum, and done again.
    """
    least, most = (power - 126.0) / LOG2E, (power + 126.0) / LOG2E
    x = torch.where(x < least, least, x)  # NaN stays; clamp takes longer
    x = torch.where(x > most, most, x)
    whole = 1.5 * 2**23 + 127 - power  # 127 is the exponent of 2^0
    bits = x * LOG2E + whole
    f = x * LOG2E - (bits - whole)
    p = 0.00015345812158740182 * f + 0.001339993120947414
    p = ((p * f + 0.0096184889565227916) * f + 0.055503287769976638) * f + 0.24022646890639572
    p = (p * f + 0.69314720573725268) * f + 1.0000000005541663
    return p * (bits.view(torch.int32) << 23).view(torch.float32)


def fused(function: Callable[..., Any], x: Tensor, *more: Tensor) -> Any:
    """``function`` of [N, V] and others, compiled; None where that cannot be had."""
    kind = function, x.dtype, x.device.type
    if len(x) == 1 or not _built.get(kind, True):  # a size of 1 would be built anew
        return None
    try:
        if kind in _built:
            return _kernel(function)(x, *more)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = _kernel(function)(x, *more)
    except Exception:  # no compiler, one that fails, the limit on recompilations
        _built[kind] = False
        return None
    _built[kind] = True
    return result


# Whether a kernel could be built; not tried again, since a failure costs as much as a build.
_built: dict[tuple[Callable[..., Any], torch.dtype, str], bool] = {}


@functools.cache
def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    from torch._inductor import config

    # a * b + c in one instruction, which is no less exact; off by default, to round as eager does.
    name = "enable_floating_point_contract_flag"
    now = getattr(config.cpp, name, None)  # older versions of torch have a bool, or none
    contract: dict[str, Any] = {}
    if now is not None:
        contract[f"cpp.{name}"] = True if isinstance(now, bool) else "fast"
    return torch.compile(function, dynamic=True, fullgraph=True, options=contract)
