"""Negative log-likelihood of tokens, from one pass over their logits.

A token with logits x and label t costs -log softmax(x)[t] nats. For any shift s this is

    nll = (s - x[t]) + log sum_i exp(x[i] - s)

which keeps every digit when s is near max(x), at whatever offset the logits stand; the usual
logsumexp(x) - x[t] does not. :func:`row_nll` gives the nll of every token and :func:`token_nll`
their sum; perplexity = exp(sum nll / tokens).

On a CPU the bound is the time to read the logits once, so a pass for max(x) is one too many: s is
the largest of a few logits, less what it has beyond a whole multiple of log 2. It lies below the
maximum, so the sum is at least 1; the rare row whose sum says that s lies too far below is done
again with its true maximum. The work goes through buffers of a few rows that stay in cache. On
other devices every row takes the true maximum, so that nothing there waits for the device.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.sharded import Part, is_sharded

__all__ = ["given_rows", "measure_rows", "row_nll", "token_nll"]

# exp(x) is computed as exp2(x log2 e): torch.exp takes 3 times as long as exp2 on a CPU.
_LOG2E = math.log2(math.e)
# Logits of a row that its shift is taken from, beside that of its label.
_SAMPLE = 512
# A larger sum asks for the maximum: float32 exponents of 20 are good to 7e-7, and get worse.
_MAX_SUM = 2.0**20
# So does a larger shift: on a CPU without fused multiply-add, x log2 e is rounded before the shift
# (by 3e-6 at this one); with it, larger ones would do as well, but are rare.
_MAX_SHIFT = 128.0
# Terms that the compiled kernel adds up in one go: in long sums the small terms would be lost.
_BLOCK = 1024
# Bytes of each thread's buffer.
_CPU_BUFFER = 3 << 20
# Logits that are worth threads of one's own. OpenMP's spin for some milliseconds after what they
# last did, and take the cores from these, unless they are told not to.
_THREADED = 4e6 if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE" else 1e8
_GPU_BUFFER = 32 << 20


def row_nll(
    logits: Tensor, labels: Tensor, ignore_index: int | None = -100, *, compile: bool = False
) -> Tensor:
    """Negative log-likelihood of every label, where labels[i] is what logits[i] predict.

    Nothing is shifted here: for a causal model give labels moved by one, never copied logits.
    The logits are read once, are not changed, and may be a view; no gradient flows.

    Args:
        logits: [..., V], floating point, unnormalised. Minus infinity masks a word. Of a DTensor
            each process measures the rows that it holds; where words of a row lie in several, all
            of these must call this together, and all get its result.
        labels: [...], integers in [0, V) or ``ignore_index``. For a DTensor: of all its rows, or of
            this process's.
        ignore_index: label of the positions that do not count; None counts every position.
        compile: run the sum as one compiled loop, on a GPU as one kernel. Needs a compiler of C++
            (for a GPU of C, and Triton) and some seconds at the first call; without them the result
            is the same, at the usual speed.

    Returns:
        [...] float64, nats, on the logits' device (the CPU for MPS, which has no float64): 0 where
        ignored, inf where the label's logit is -inf, NaN where a counted row holds NaN or inf.

    Raises:
        TypeError: logits that are not floating point, labels that are not integers.
        ValueError: shapes that do not fit; on a CPU, labels outside [0, V). On other devices such
            a label gives NaN, since looking would mean to wait for the device.

    Example:
        >>> import torch
        >>> row_nll(torch.tensor([[0.0, 0.0], [1e4, 1e4]]), torch.tensor([1, -100]))
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    return measure_rows(logits, labels, ignore_index, compile)[0]


def token_nll(
    logits: Tensor, labels: Tensor, ignore_index: int | None = -100, *, compile: bool = False
) -> tuple[Tensor, Tensor]:
    """Sum of the negative log-likelihoods in nats, and the number of labels that it counts.

    Args, raises: as :func:`row_nll`.

    Returns:
        float64 scalar and int64 scalar; 0 and 0 where every label is ignored.

    Example:
        >>> import torch
        >>> token_nll(torch.zeros(2, 3, 8), torch.tensor([[1, 2, 3], [4, -100, -100]]))
        (tensor(8.3178, dtype=torch.float64), tensor(4))
    """
    nll, counted, _ = measure_rows(logits, labels, ignore_index, compile)
    return nll.sum(), counted.sum()


class Rows(NamedTuple):
    """What logits cost their labels; each tensor has the labels' shape."""

    nll: Tensor
    """float64, nats; 0 where ignored."""
    counted: Tensor
    """Whether the label counts."""
    invalid: Tensor
    """Whether a label that counts is outside the vocabulary."""


def measure_rows(logits: Tensor, labels: Tensor, ignore_index: int | None, compile: bool) -> Rows:
    """NLL of logits [..., V], see :func:`row_nll`."""
    with torch.no_grad():
        v = logits.shape[-1] if logits.ndim else 0
        part = Part.of(logits) if is_sharded(logits) else None
        if part is not None:
            logits, labels = part.logits, part.own(labels)
        _check(logits, labels, v)
        x, t = logits.detach(), labels.long()
        counted = _counted(t, ignore_index)
        wrong = counted & ((t < 0) | (t >= v))
        if _may_look(x) and bool(wrong.any()):
            raise outside(v, ignore_index, f"{int(t[wrong][0])}")
        if part is not None and part.groups:
            nll = _nll_of_part(x, t.clamp(0, v - 1), part)
        else:
            nll = _nll(x, t.clamp(0, v - 1), counted, compile)
        counted, wrong = counted.to(nll.device), wrong.to(nll.device)
        nll = nll.masked_fill(~counted, 0.0).masked_fill(wrong, math.nan)
        return Rows(nll, counted, wrong)


def given_rows(nll: Tensor, labels: Tensor, ignore_index: int | None) -> Rows:
    """Rows of known NLL: [...] as the labels, or a scalar, the mean over those that count.

    Raises:
        TypeError: NLL that is not floating point.
        ValueError: NLL of another shape.
    """
    if nll.shape not in (torch.Size(), labels.shape):
        raise ValueError(
            f"expected NLL of shape {list(labels.shape)}, as its labels, or a scalar mean,"
            f" got {list(nll.shape)}; give logits to update."
        )
    if not nll.is_floating_point():
        raise TypeError(f"expected floating point NLL, got {nll.dtype}; give nats.")
    nll = _wide(nll.detach())
    counted = _counted(labels, ignore_index).to(nll.device)
    nll = nll.expand(counted.shape).masked_fill(~counted, 0.0)
    return Rows(nll, counted, torch.zeros_like(counted))


def _counted(labels: Tensor, ignore_index: int | None) -> Tensor:
    return (labels == labels) if ignore_index is None else (labels != ignore_index)


def _check(logits: Tensor, labels: Tensor, vocabulary: int) -> None:
    if logits.shape[:-1] != labels.shape or vocabulary == 0:
        raise ValueError(
            "Expected logits [..., vocabulary] and labels [...], got shapes"
            f" {list(logits.shape)} and {list(labels.shape)}. Where logits predict the next token,"
            " move the labels by one (and set the last one to ignore_index)."
        )
    if not logits.is_floating_point():
        raise TypeError(
            f"Expected floating point logits, got {logits.dtype}. Are the two arguments swapped?"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"Expected integer labels, got {labels.dtype}. Give token ids.")
    if logits.device != labels.device:
        raise ValueError(
            f"Expected logits and labels on one device, got {logits.device} and {labels.device}."
        )


def outside(vocabulary: int | str, ignore_index: int | None, found: str) -> ValueError:
    return ValueError(
        f"Expected targets in [0, {vocabulary}) or ignore_index={ignore_index}, got {found}."
        " Set padding to ignore_index; check that tokenizer and model have one vocabulary."
    )


def _nll(x: Tensor, t: Tensor, counted: Tensor, compile: bool) -> Tensor:
    """NLL of logits [..., V]; any value where not counted."""
    if t.numel() == 0:
        return torch.zeros(t.shape, dtype=torch.float64, device=_wide(t).device)
    try:
        rows = x.view(-1, x.shape[-1])
    except RuntimeError:  # as logits[:, :-1] of several sequences: each alone is a view of rows
        each = zip(x, t, counted, strict=True)
        return torch.stack([_nll(*sequence, compile) for sequence in each])
    label = rows.gather(-1, t.reshape(-1, 1))[:, 0]
    if _may_look(x):
        shift, total = _sampled_sums(rows, label, counted.reshape(-1), compile)
    else:
        sums = _fused(_max_sums, rows) if compile else None
        shift, total = _max_sums_of_parts(rows) if sums is None else sums
    # The label's is a term of the sum, so below 0 there is only rounding.
    nll = (_wide(shift) - _wide(label)) + _wide(total).log()
    return nll.clamp(min=0).view(t.shape)


def _nll_of_part(x: Tensor, t: Tensor, part: Part) -> Tensor:
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
        parts = [_max_sums(p) for s in sequences for p in torch.split(s, _rows_in(_GPU_BUFFER, x))]
        top, total = (torch.cat(c).double().view(t.shape) for c in zip(*parts, strict=True))
    shift = part.maximum(top)
    # Where all words here are masked, top is -inf and the sum of these is NaN instead of nothing.
    total = torch.where(top == -math.inf, 0.0, total * (top - shift).exp())
    total, label = part.sum(torch.stack([total, label]))
    nll: Tensor = (shift - label) + total.clamp(min=1).log()
    return nll


def _max_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of every row of [N, V], and sum exp(x - maximum)."""
    top = x.amax(-1, keepdim=True).to(_sum_dtype(x))
    y = torch.sub(x, top)
    return top[:, 0], (y.mul_(_LOG2E).exp2_() if _may_look(x) else y.exp_()).sum(-1)


def _max_sums_of_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same, without a copy of all logits."""
    parts = [_max_sums(part) for part in torch.split(x, _rows_in(_GPU_BUFFER, x))]
    top, total = (torch.cat(column) for column in zip(*parts, strict=True))
    return top, total


def _sampled_sums(
    x: Tensor, label: Tensor, counted: Tensor, compile: bool
) -> tuple[Tensor, Tensor]:
    """A shift of every row of [N, V], and sum exp(x - shift), float64, on a CPU."""
    top = torch.maximum(x[:, :_SAMPLE].amax(-1), label).to(_sum_dtype(x))
    plain = counted & (top.abs() <= _MAX_SHIFT)  # not so where it is NaN
    # Counted rows come in runs (prompts, padding): the rest is not even read.
    edge = torch.zeros(1, dtype=torch.int32, device=x.device)
    runs = plain.int().diff(prepend=edge, append=edge).nonzero().view(-1, 2).tolist()
    # exp(x - shift) = exp2(x c - power), one fused multiply-add that rounds once: power is whole.
    c = _log2e(x)
    power = (top.double() * c).floor()
    shift, power = power / c, power.to(top.dtype)
    total = _compiled_sums(x, power, runs) if compile else None
    total = _buffered_sums(x, power, runs) if total is None else total
    again = (counted & ~(plain & (total <= _MAX_SUM))).nonzero()[:, 0]
    size = _rows_in(_buffer_bytes(x), x)
    for a in range(0, len(again), size):
        i = again[a : a + size]
        largest, sums = _max_sums(x[i])
        shift[i], total[i] = largest.double(), sums.double()
    return shift, total


def _buffered_sums(x: Tensor, power: Tensor, runs: list[list[int]]) -> Tensor:
    """Sum exp2(x log2 e - power) of the rows in the runs, through buffers that stay in cache."""
    count = torch.get_num_threads() if x.numel() >= _THREADED else 1
    size, dtype, total = _rows_in(_buffer_bytes(x) // count, x), power.dtype, torch.ones_like(power)
    parts = [(a, min(a + size, stop)) for start, stop in runs for a in range(start, stop, size)]
    turn = itertools.count()
    c, offset = _log2e(x), -power

    def work() -> None:
        with torch.inference_mode():  # a thread starts in no mode, and total may be of this one
            buffer = torch.empty(min(size, len(x)), x.shape[1], dtype=dtype, device=x.device)
            while (i := next(turn)) < len(parts):
                a, b = parts[i]
                y = buffer[: b - a]
                # Mixed dtypes would make add allocate a copy of its own.
                part = x[a:b] if x.dtype == dtype else y.copy_(x[a:b])
                torch.add(offset[a:b, None], part, alpha=c, out=y)
                torch.sum(y.exp2_(), -1, out=total[a:b])

    _on_threads(work, min(count, len(parts)))
    return total.double()


def _on_threads(work: Callable[[], None], count: int) -> None:
    """Run ``work`` on ``count`` threads, each of which does its tensor operations alone.

    Where operations share themselves out, every one of hundreds waits for the slowest core: some 10
    times as long as this when other processes use the cores, as data loaders do.
    """
    has_openmp: Callable[[], bool] = torch.backends.openmp.is_available
    if count <= 1 or not has_openmp():
        return work()
    own = torch.get_num_threads()
    try:
        # OpenMP keeps the number for each thread; the default for new threads is set back after.
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done in [pool.submit(work) for _ in range(count)]:
                done.result()
    finally:
        torch.set_num_threads(own)


def _compiled_sums(x: Tensor, power: Tensor, runs: list[list[int]]) -> Tensor | None:
    """As :func:`_buffered_sums`, in one loop; None where that cannot be had."""
    # No short rows: a number of blocks of 0 or 1 would be built anew, for nothing.
    if x.shape[1] < 2 * _BLOCK or x.dtype == torch.float64 or x.stride(1) != 1:
        return None
    total = torch.ones_like(power)
    for start, stop in runs:
        a, b = max(0, min(start, stop - 2)), max(stop, 2)
        sums = _fused(_block_sums, x[a:b], power[a:b])
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
    return torch.exp2(x.float() * _LOG2E - power)


def _powers(x: Tensor, power: Tensor) -> Tensor:
    """exp2(x log2 e - power) of float32, |power| < 2^8 and whole, to 1e-7, to be compiled.

    2^(n + f) = 2^n 2^f with n whole and |f| <= 1/2. A number of 2^23 and more has no digits behind
    the point, and its last bits are those of an integer: added to one, x log2 e - power is rounded
    to n, and 9 bits, moved to where the exponent is, are 2^n. 2^f is a polynomial of degree 6 with
    the least relative error (2e-9, by Remez' exchange). Beyond +-126 it stands still: less counts
    for nothing, more is found in the sum, and done again.
    """
    least, most = (power - 126.0) / _LOG2E, (power + 126.0) / _LOG2E
    x = torch.where(x < least, least, x)  # NaN stays; clamp takes longer
    x = torch.where(x > most, most, x)
    whole = 1.5 * 2**23 + 127 - power  # 127 is the exponent of 2^0
    bits = x * _LOG2E + whole
    f = x * _LOG2E - (bits - whole)
    p = 0.00015345812158740182 * f + 0.001339993120947414
    p = ((p * f + 0.0096184889565227916) * f + 0.055503287769976638) * f + 0.24022646890639572
    p = (p * f + 0.69314720573725268) * f + 1.0000000005541663
    return p * (bits.view(torch.int32) << 23).view(torch.float32)


def _fused(function: Callable[..., Any], x: Tensor, *more: Tensor) -> Any:
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


def _log2e(x: Tensor) -> float:
    """log2 e as the dtype of the sums has it: off by a part in 1e8, which no NLL shows."""
    return torch.tensor(_LOG2E, dtype=_sum_dtype(x)).item()


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _may_look(x: Tensor) -> bool:
    """Whether the code may decide by values; on a GPU it would wait for them at every batch."""
    return x.device.type == "cpu"


def _wide(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()


def _buffer_bytes(x: Tensor) -> int:
    """All threads' together: small beside the logits, large beside starting an operation."""
    return max(1 << 19, min(_CPU_BUFFER * torch.get_num_threads(), x.nbytes // 52))


def _rows_in(size: int, x: Tensor) -> int:
    return max(1, size // (x.shape[-1] * _sum_dtype(x).itemsize))
