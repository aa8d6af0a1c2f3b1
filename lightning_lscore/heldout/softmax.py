"""NLL of rows of logits, in one pass over them.

For any shift s, a row of logits x with label t costs

    nll = (s - x[t]) + log sum_i exp(x[i] - s)

which keeps every digit when s is near max(x), whatever the offset of the logits; the usual
logsumexp(x) - x[t] does not.

On a CPU the time to read the logits once is the bound, so a pass for max(x) is one too many. There
s is the largest of a few logits, rounded down to a whole multiple of log 2. It is at most the
maximum, so the sum is at least 1. A large sum shows that s is too far below the maximum; these rare
rows are computed again with their true maximum. The work goes through buffers of a few rows that
stay in cache. Other devices use the true maximum of every row, which needs no synchronization.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.sharded import Part
from . import numerics
from .buffered import buffer_bytes, buffered_sums
from .compiled import compiled_sums, fused

# The shift of a row is the largest of this many logits and that of its label.
_SAMPLE = 512
# A larger sum needs the maximum: float32 exponents of 20 are good to 7e-7, larger ones less.
_MAX_SUM = 2.0**20
# So does a larger shift: on a CPU without fused multiply-add, x log2 e is rounded before the shift
# (by 3e-6 at this one); with it, larger ones would do as well, but are rare.
_MAX_SHIFT = 128.0
_GPU_BUFFER = 32 << 20


def nll_of_rows(x: Tensor, t: Tensor, counted: Tensor, compile: bool) -> Tensor:
    """Return the NLL of logits [..., V]; any value where not counted."""
    if t.numel() == 0:
        return torch.zeros(t.shape, dtype=torch.float64, device=numerics.wide(t).device)
    try:
        rows = x.view(-1, x.shape[-1])
    except RuntimeError:  # logits[:, :-1] of several sequences: each alone is a view of rows
        each = zip(x, t, counted, strict=True)
        return torch.stack([nll_of_rows(*sequence, compile) for sequence in each])
    label = rows.gather(-1, t.reshape(-1, 1))[:, 0]
    if numerics.may_look(x):
        shift, total = _sampled_sums(rows, label, counted.reshape(-1), compile)
    else:
        sums = fused(_max_sums, rows) if compile else None
        shift, total = _max_sums_of_parts(rows) if sums is None else sums
    # The label's term is part of the sum, so only rounding goes below 0.
    nll = (numerics.wide(shift) - numerics.wide(label)) + numerics.wide(total).log()
    return nll.clamp(min=0).view(t.shape)


def nll_of_part(x: Tensor, t: Tensor, part: Part) -> Tensor:
    """Return the NLL of rows [..., V here] whose vocabulary is sharded; V here may be 0."""
    label, top = (
        torch.full(t.shape, fill, dtype=torch.float64, device=x.device) for fill in (0.0, -math.inf)
    )
    total = torch.zeros_like(label)
    if x.numel():
        here = t - part.first_word
        inside = (here >= 0) & (here < x.shape[-1])
        picked = x.gather(-1, here.clamp(0, x.shape[-1] - 1)[..., None])[..., 0]
        label = torch.where(inside, picked.double(), 0.0)
        sequences = x.reshape(-1, *x.shape[-2:]) if x.ndim > 1 else x[None, None]
        size = numerics.rows_in(_GPU_BUFFER, x)
        parts = [_max_sums(p) for s in sequences for p in torch.split(s, size)]
        top, total = (torch.cat(c).double().view(t.shape) for c in zip(*parts, strict=True))
    shift = part.maximum(top)
    # If all words here are masked, top is -inf and their sum is NaN instead of 0.
    total = torch.where(top == -math.inf, 0.0, total * (top - shift).exp())
    total, label = part.sum(torch.stack([total, label]))
    nll: Tensor = (shift - label) + total.clamp(min=1).log()
    return nll


def _max_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of every row of [N, V], and sum exp(x - maximum)."""
    top = x.amax(-1, keepdim=True).to(numerics.sum_dtype(x))
    y = torch.sub(x, top)
    return top[:, 0], (y.mul_(numerics.LOG2E).exp2_() if numerics.may_look(x) else y.exp_()).sum(-1)


def _max_sums_of_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same, without a copy of all logits."""
    parts = [_max_sums(part) for part in torch.split(x, numerics.rows_in(_GPU_BUFFER, x))]
    top, total = (torch.cat(column) for column in zip(*parts, strict=True))
    return top, total


def _sampled_sums(
    x: Tensor, label: Tensor, counted: Tensor, compile: bool
) -> tuple[Tensor, Tensor]:
    """Return a shift of every row of [N, V], and sum exp(x - shift), float64, on a CPU."""
    top = torch.maximum(x[:, :_SAMPLE].amax(-1), label).to(numerics.sum_dtype(x))
    plain = counted & (top.abs() <= _MAX_SHIFT)  # False for NaN
    # Counted rows come in runs, between prompts and padding: the rest is not even read.
    edge = torch.zeros(1, dtype=torch.int32, device=x.device)
    runs = plain.int().diff(prepend=edge, append=edge).nonzero().view(-1, 2).tolist()
    # exp(x - shift) = exp2(x c - power) with a whole power: a fused multiply-add that rounds once.
    c = numerics.log2e(x)
    power = (top.double() * c).floor()
    shift, power = power / c, power.to(top.dtype)
    total = compiled_sums(x, power, runs) if compile else None
    total = buffered_sums(x, power, runs) if total is None else total
    again = (counted & ~(plain & (total <= _MAX_SUM))).nonzero()[:, 0]
    size = numerics.rows_in(buffer_bytes(x), x)
    for a in range(0, len(again), size):
        i = again[a : a + size]
        largest, sums = _max_sums(x[i])
        shift[i], total[i] = largest.double(), sums.double()
    return shift, total
