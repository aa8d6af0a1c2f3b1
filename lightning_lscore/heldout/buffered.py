"""Sums of exponentials on a CPU, through buffers of a few rows that stay in cache."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from . import numerics

# Bytes of each thread's buffer.
_CPU_BUFFER = 3 << 20
# Logits that are worth threads of our own. After their last work OpenMP's threads spin for some
# milliseconds and take the cores from ours, unless OMP_WAIT_POLICY is PASSIVE.
_THREADED = 4e6 if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE" else 1e8


def buffered_sums(x: Tensor, power: Tensor, runs: list[list[int]]) -> Tensor:
    """Return sum exp2(x log2 e - power) of the rows in the runs, in buffers that stay in cache."""
    count = torch.get_num_threads() if x.numel() >= _THREADED else 1
    size, dtype, total = (
        numerics.rows_in(buffer_bytes(x) // count, x),
        power.dtype,
        torch.ones_like(power),
    )
    parts = [(a, min(a + size, stop)) for start, stop in runs for a in range(start, stop, size)]
    turn = itertools.count()
    c, offset = numerics.log2e(x), -power

    def work() -> None:
        with (
            torch.inference_mode()
        ):  # a thread starts outside any mode, and total may be an inference tensor
            buffer = torch.empty(min(size, len(x)), x.shape[1], dtype=dtype, device=x.device)
            while (i := next(turn)) < len(parts):
                a, b = parts[i]
                y = buffer[: b - a]
                # With mixed dtypes, add would allocate a copy.
                part = x[a:b] if x.dtype == dtype else y.copy_(x[a:b])
                torch.add(offset[a:b, None], part, alpha=c, out=y)
                torch.sum(y.exp2_(), -1, out=total[a:b])

    _on_threads(work, min(count, len(parts)))
    return total.double()


def _on_threads(work: Callable[[], None], count: int) -> None:
    """Run ``work`` on ``count`` threads; each runs its tensor operations on one core.

    Operations that spread over cores wait for the slowest one, hundreds of times. That takes about
    10 times as long when other processes use the cores too, data loaders for example.
    """
    has_openmp: Callable[[], bool] = torch.backends.openmp.is_available
    if count <= 1 or not has_openmp():
        return work()
    own = torch.get_num_threads()
    try:
        # OpenMP keeps the number per thread; the default for new threads is restored below.
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done in [pool.submit(work) for _ in range(count)]:
                done.result()
    finally:
        torch.set_num_threads(own)


def buffer_bytes(x: Tensor) -> int:
    """Return the size for all threads: small beside the logits, large enough to pay for a call."""
    return max(1 << 19, min(_CPU_BUFFER * torch.get_num_threads(), x.nbytes // 52))
