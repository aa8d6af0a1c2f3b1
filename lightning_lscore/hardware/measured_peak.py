"""How fast a device multiplies matrices, for one whose peak nobody publishes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .peaks import Peak

__all__ = ["measured_peak"]


def measured_peak(
    device: Any,
    dtype: str,
    *,
    threads: int | None = None,
    seconds: float = 0.3,
    now: Callable[[], float] = time.perf_counter,
) -> Peak | None:
    """The fastest of several square matrix products, in the run's own precision settings.

    A 16-bit format that the device has to imitate, as many a CPU at a hundredth of the rate, does
    not make it a slower device: float32, which holds the same numbers, is measured too, and the
    faster of the two counts.

    A stand-in for a published peak, and lower: 60 to 95 % of it where there is one. Call it once,
    before training: it synchronises the device and holds up to 0.8 GB of its memory for a moment.
    Leaves the random generators, the number of threads and autocast as they were.

    Args:
        device: a `torch.device` or its name.
        dtype: as for `peak_flops`; `tf32` multiplies in float32, as torch is set to.
        threads: CPU threads; None: as many as torch uses.
        seconds: about how long it may take. Warm-up and slow devices may double it.
        now: seconds.

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
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            each = seconds / len(formats)
            rates = {f: _fastest_product(device, getattr(torch, f), each, now) for f in formats}
    except (RuntimeError, TypeError):  # not implemented there, or out of memory at once
        return None
    finally:
        torch.set_num_threads(before)
    best = max(formats, key=lambda f: rates[f])
    flops, size = rates[best]
    source = f"measured: {dtype if best == name else best} product of {size} x {size} matrices"
    source += f" on {device}" + (f", {threads or before} threads" if device.type == "cpu" else "")
    if best != name:
        source += f" ({dtype}: {rates[name][0] / flops:.2g} times as fast)"
    return Peak(flops=flops, source=source)


def _fastest_product(
    device: Any, dtype: Any, seconds: float, now: Callable[[], float]
) -> tuple[float, int]:
    """The best FLOP/s, and the size that gave it. Sizes grow as far as the time allows."""
    import torch

    on_cpu = device.type == "cpu"
    synchronize = getattr(getattr(torch, device.type), "synchronize", lambda: None)
    generator = torch.Generator(device=device).manual_seed(0)  # not the global one
    best, best_size = 0.0, 0
    deadline = now() + seconds
    left = seconds
    for size in (512, 1024, 2048) if on_cpu else (1024, 2048, 4096, 8192):
        if best and not _fits(device, dtype, size):
            break
        a, b = (
            torch.randn(size, size, device=device, dtype=dtype, generator=generator)
            for _ in range(2)
        )
        out = torch.mm(a, b)  # warm-up: the library chooses its kernel here
        # Several small ones in one go on a GPU, so that their launch does not weigh in.
        products = 1 if on_cpu else max(1, 2**33 // size**3)
        fastest, repeats = float("inf"), 0
        # The next size takes eightfold; it is worth a warm-up and three products at least.
        while left > 0 and (repeats < 3 or left < 4 * 8 * fastest):
            synchronize()
            start = now()
            for _ in range(products):
                torch.mm(a, b, out=out)
            synchronize()
            end = now()
            fastest = min(fastest, max(end - start, 1e-9) / products)
            repeats += 1
            left = deadline - end
        best, best_size = max((best, best_size), (2 * size**3 / fastest, size))
        if left <= 0:
            break
    del a, b, out
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best, best_size


def _fits(device: Any, dtype: Any, size: int) -> bool:
    """Whether three such matrices take less than a quarter of the device's free memory."""
    import torch

    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return bool(4 * 3 * size * size * dtype.itemsize < free)
