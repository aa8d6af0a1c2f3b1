"""Sums of exponentials as one compiled loop, on a GPU as one kernel."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .numerics import LOG2E

# Terms that the compiled kernel adds up at a time: longer sums would lose the small terms.
_BLOCK = 1024


def compiled_sums(x: Tensor, power: Tensor, runs: list[list[int]]) -> Tensor | None:
    """Return what ``buffered_sums`` does, in one loop; None if it cannot be compiled."""
    # No short rows: 0 or 1 blocks would mean another compilation, for no gain.
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
    # For 16-bit logits the compiler splits vectors in two, and torch.exp2 is the faster loop.
    powers = _powers if x.dtype == torch.float32 else _library_powers
    blocks = powers(x[:, : k * _BLOCK].view(n, k, _BLOCK), power[:, None, None])
    return blocks.sum(-1).sum(-1) + powers(x[:, k * _BLOCK :], power[:, None]).sum(-1)


def _library_powers(x: Tensor, power: Tensor) -> Tensor:
    return torch.exp2(x.float() * LOG2E - power)


def _powers(x: Tensor, power: Tensor) -> Tensor:
    """Return exp2(x log2 e - power) of float32 to 1e-7, for whole |power| < 2^8; to be compiled.

    2^(n + f) = 2^n 2^f with n whole and |f| <= 1/2. A float32 of 2^23 or more has no fractional
    digits, and its last bits are those of an integer: adding x log2 e - power to one rounds it to
    n, and 9 bits, moved to the exponent, are 2^n. 2^f is a polynomial of degree 6 with the least
    relative error (2e-9, by Remez' exchange). The exponent is clamped to +-126: less adds nothing,
    and more shows in the sum, so the row is computed again.
    """
    least, most = (power - 126.0) / LOG2E, (power + 126.0) / LOG2E
    x = torch.where(x < least, least, x)  # keeps NaN; clamp takes longer
    x = torch.where(x > most, most, x)
    whole = 1.5 * 2**23 + 127 - power  # 127 is the exponent of 2^0
    bits = x * LOG2E + whole
    f = x * LOG2E - (bits - whole)
    p = 0.00015345812158740182 * f + 0.001339993120947414
    p = ((p * f + 0.0096184889565227916) * f + 0.055503287769976638) * f + 0.24022646890639572
    p = (p * f + 0.69314720573725268) * f + 1.0000000005541663
    return p * (bits.view(torch.int32) << 23).view(torch.float32)


def fused(function: Callable[..., Any], x: Tensor, *more: Tensor) -> Any:
    """Return the compiled ``function`` of [N, V] and others; None if it cannot be compiled."""
    kind = function, x.dtype, x.device.type
    if len(x) == 1 or not _built.get(kind, True):  # a size of 1 means another compilation
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


# Whether a kernel could be built. A failure costs as much as a build, so it is not tried again.
_built: dict[tuple[Callable[..., Any], torch.dtype, str], bool] = {}


@functools.cache
def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    from torch._inductor import config

    # a * b + c in one instruction is no less exact; off by default, to round as eager mode does.
    name = "enable_floating_point_contract_flag"
    now = getattr(config.cpp, name, None)  # a bool in older versions of torch, or absent
    contract: dict[str, Any] = {}
    if now is not None:
        contract[f"cpp.{name}"] = True if isinstance(now, bool) else "fast"
    return torch.compile(function, dynamic=True, fullgraph=True, options=contract)
