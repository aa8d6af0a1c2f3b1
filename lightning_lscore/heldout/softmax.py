"""NLL of rows of logits with one pass over them.

For any shift s, a row of logits x with label t costs

    nll = (s - x[t]) + log sum_i exp(x[i] - s)

which keeps every digit when s is near max(x), at whatever offset the logits stand; the usual
logsumexp(x) - x[t] does not.

On a CPU the bound is the time to read the logits once, so a pass for max(x) is one too many: s is
the largest of a few logits, less what it has beyond a whole multiple of log 2. It lies below the
maximum, so the sum is at least 1; the rare row whose sum says that s lies too far below is done
again with its true maximum. The work goes through buffers of a few rows that stay in cache. On
other devices every row takes the true maximum, so that nothing there waits for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.sharded import Part
from . import numerics
from .buffered import buffer_bytes, buffered_sums
from .compiled import compiled_sums, fused

# Logits of a row that its shift is taken from, beside that of its label.
_SAMPLE = 512
# A larger sum asks for the maximum: float32 exponents of 20 are good to 7e-7, and get worse.
_MAX_SUM = 2.0**20
# So does a larger shift: on a CPU without fused multiply-add, x log2 e is rounded before the shift
# (by 3e-6 at this one); with it, larger ones would do as well, but are rare.
_MAX_SHIFT = 128.0
_GPU_BUFFER = 32 << 20


def nll_of_rows(x: Tensor, t: Tensor, counted: Tensor, compile: bool) -> Tensor:
    """NLL of logits [..., V]; any value where not counted."""
    if t.numel() == 0:
        return torch.zeros(t.shape, dtype=torch.float64, device=numerics.wide(t).device)
    try:
        rows = x.view(-1, x.shape[-1])
    except RuntimeError:  # as logits[:, :-1] of several sequences: each alone is a view of rows
        each = zip(x, t, counted, strict=True)
        return torch.stack([nll_of_rows(*sequence, compile) for sequence in each])
    label = rows.gather(-1, t.reshape(-1, 1))[:, 0]
    if numerics.may_look(x):
        shift, total = _sampled_sums(rows, label, counted.reshape(-1), compile)
    else:
        sums = fused(_max_sums, rows) if compile else None
        shift, total = _max_sums_of_parts(rows) if sums is None else sums
    # The label's is a term of the sum, so below 0 there is only rounding.
    nll = (numerics.wide(shift) - numerics.wide(label)) + numerics.wide(total).log()
    return nll.clamp(min=0).view(t.shape)


def nll_of_part(x: Tensor, t: Tensor, part: Part) -> Tensor:
    """NLL of rows of which this process holds some words, [..., V here], possibly none."""
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
    # Where all words here are masked, top is -inf and the sum of these is NaN instead of nothing.
    total = torch.where(top == -math.inf, 0.0, total * (top - shift).exp())
    total, label = part.sum(torch.stack([total, label]))
    nll: Tensor = (shift - label) + total.clamp(min=1).log()
    return nll


def _max_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of every row of [N, V], and sum exp(x - maximum)."""
    top = x.amax(-1, keepdim=True).to(numerics.sum_dtype(x))
    y = torch.sub(x, top)
    return top[:, 0], (y.mul_(numerics.LOG2E).exp2_() if numerics.may_look(x) else y.exp_()).sum(-1)


def _max_sums_of_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same, without a copy of all logits."""
    parts = [_max_sums(part) for part in torch.split(x, numerics.rows_in(_GPU_BUFFER, x))]
    top, total = (torch.cat(column) for column in zip(*parts, strict=True))
    return top, total


def _sampled_sums(
    x: Tensor, label: Tensor, counted: Tensor, compile: bool
) -> tuple[Tensor, Tensor]:
    """A shift of every row of [N, V], and sum exp(x - shift), float64, on a CPU."""
    top = torch.maximum(x[:, :_SAMPLE].amax(-1), label).to(numerics.sum_dtype(x))
    plain = counted & (top.abs() <= _MAX_SHIFT)  # not so where it is NaN
    # Counted rows come in runs (prompts, padding): the rest is not even read.
    edge = torch.zeros(1, dtype=torch.int32, device=x.device)
    runs = plain.int().diff(prepend=edge, append=edge).nonzero().view(-1, 2).tolist()
    # exp(x - shift) = exp2(x c - power), one fused multiply-add that rounds once: power is whole.
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
