"""How fast a device multiplies matrices right now, and whether other programs slowed it down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from .cpu import usable_threads

__all__ = ["Rate", "multiply"]

_SHARE = 0.9
"""A process that gets a smaller share of its threads' CPU time competes with other programs."""

_SCATTER = 1.1
"""On a quiet machine half of a product's repeats take less than this times the fastest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """The fastest of some matrix products."""

    flops: float
    """FLOP/s."""
    what: str
    """Which product it was, and where."""
    disturbed: str = ""
    """Evidence that other programs slowed it down; empty if there is none."""


def multiply(
    device: Any,
    dtype: str,
    *,
    threads: int | None = None,
    seconds: float = 0.3,
    now: Callable[[], float] = time.perf_counter,
    cpu_time: Callable[[], float] = time.process_time,
) -> Rate | None:
    """Return the fastest of several square matrix products, in the run's own precision settings.

    A CPU that has to emulate a 16-bit format, often at a hundredth of the rate, is not a slower
    device for that: float32, which holds the same numbers, is measured too, and the faster of the
    two counts.

    It synchronises the device and holds up to 0.8 GB of its memory for a moment. It leaves the
    random generators, the number of threads and autocast as they were.

    Args:
        device: A ``torch.device`` or its name.
        dtype: As for ``peak_flops``; ``tf32`` multiplies in float32, as torch is set to.
        threads: CPU threads; None: as many as torch uses.
        seconds: About how long it may take. Warm-up and slow devices may double it.
        now: Seconds of wall time.
        cpu_time: CPU seconds of this process, over all of its threads.

    Returns:
        None if torch cannot multiply in that precision there, or has no memory for it.
    """
    import torch

    device = torch.device(device)
    name = "float32" if dtype == "tf32" else dtype
    if name not in ("float64", "float32", "bfloat16", "float16"):
        return None  # torch has no public product of float8 matrices
    formats = (name, "float32") if name.endswith("16") else (name,)
    before = torch.get_num_threads()
    threads = threads or before
    try:
        torch.set_num_threads(threads)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            each = seconds / len(formats)
            rates = {
                f: _fastest_product(device, getattr(torch, f), each, threads, now, cpu_time)
                for f in formats
            }
    except (RuntimeError, TypeError):  # not implemented there, or out of memory at once
        return None
    finally:
        torch.set_num_threads(before)
    best = max(formats, key=lambda f: rates[f][0])
    flops, size, disturbed = rates[best]
    what = f"{dtype if best == name else best} product of {size} x {size} matrices on {device}"
    what += f", {threads} threads" if device.type == "cpu" else ""
    if best != name:
        what += f" ({dtype}: {rates[name][0] / flops:.2g} times as fast)"
    return Rate(flops=flops, what=what, disturbed=disturbed)


def _fastest_product(
    device: Any,
    dtype: Any,
    seconds: float,
    threads: int,
    now: Callable[[], float],
    cpu_time: Callable[[], float],
) -> tuple[float, int, str]:
    """Return the best FLOP/s, its size of matrices, and what disturbed the products of that size.

    Sizes grow as far as the time allows.
    """
    import torch

    on_cpu = device.type == "cpu"
    synchronize = getattr(getattr(torch, device.type), "synchronize", lambda: None)
    generator = torch.Generator(device=device).manual_seed(0)  # not the global one
    best = (0.0, 0, "")
    deadline = now() + seconds
    left = seconds
    for size in (512, 1024, 2048) if on_cpu else (1024, 2048, 4096, 8192):
        if best[0] and not _fits(device, dtype, size):
            break
        a, b = (
            torch.randn(size, size, device=device, dtype=dtype, generator=generator)
            for _ in range(2)
        )
        out = torch.mm(a, b)  # warm-up: the library chooses its kernel here
        # Several small ones at once on a GPU, to hide their launch.
        products = 1 if on_cpu else max(1, 2**33 // size**3)
        took: list[float] = []
        cpu_start = cpu_time()
        # The next size takes eightfold; it is worth a warm-up and three products at least.
        while left > 0 and (len(took) < 3 or left < 4 * 8 * min(took) / products):
            synchronize()
            start = now()
            for _ in range(products):
                torch.mm(a, b, out=out)
            synchronize()
            end = now()
            took.append(max(end - start, 1e-9))
            left = deadline - end
        cpu_seconds = cpu_time() - cpu_start if on_cpu else None
        if took:
            flops = 2 * size**3 * products / min(took)
            best = max(best, (flops, size, _disturbance(took, cpu_seconds, threads)))
        if left <= 0:
            break
    del a, b, out
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best


def _disturbance(took: list[float], cpu_seconds: float | None, threads: int) -> str:
    """Return evidence that other programs slowed these repeats down; empty if there is none."""
    if cpu_seconds is not None:
        # More threads than CPUs take turns even on a quiet machine.
        share = cpu_seconds / (sum(took) * min(threads, usable_threads()))
        if share < _SHARE:
            return f"the process got {share:.0%} of the CPU time that it could use"
    if median(took) > _SCATTER * min(took):
        return f"half of the products took over {_SCATTER:g} times as long as the fastest"
    return ""


def _fits(device: Any, dtype: Any, size: int) -> bool:
    """Return whether three such matrices take less than a quarter of the device's free memory."""
    import torch

    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return bool(4 * 3 * size * size * dtype.itemsize < free)
