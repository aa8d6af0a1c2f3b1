"""The peak of a device that is in no table: measured once, and kept for later runs.

A measurement is only as good as the machine is quiet. A figure from a quiet machine stands, so
that runs there compare however busy the machine is when they start. A figure from a busy machine
is marked so, and the next process measures again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from .peak_cache import AGREE, CachedPeak, PeakCache, better, cache_folder
from .peaks import Peak
from .products import Rate, multiply

__all__ = ["measured_peak"]

ROUND_SECONDS = 0.3
ENOUGH_SECONDS = 1.5
"""No round begins that would end later than this after the first began."""

_known: dict[tuple[Any, ...], Peak | None] = {}
"""What this process has found: it measures nothing twice."""


def measured_peak(
    device: Any,
    dtype: str,
    *,
    name: str,
    threads: int | None = None,
    anew: bool = False,
    now: Callable[[], float] = time.perf_counter,
) -> Peak | None:
    """Return how fast a device multiplies matrices: known, kept from an earlier run, or measured.

    A stand-in for a published peak, and lower: 60 to 95 % of it where there is one. It takes about
    0.6 s on a quiet machine and up to 1.5 s on a busy one, once; see ``products.multiply`` for what
    it does meanwhile. A cache that cannot be used costs the saving and nothing else.

    Args:
        device: A ``torch.device`` or its name.
        dtype: As for ``peak_flops``.
        name: The device's name by its vendor: what a kept peak is found by, beside the precision,
            the threads and torch's version.
        threads: CPU threads; None: as many as torch uses.
        anew: Measure even if the peak is known. The best of both counts.
        now: Seconds of wall time.

    Returns:
        None if torch cannot multiply in that precision there, or has no memory for it.
    """
    import torch

    device = torch.device(device)
    on_cpu = device.type == "cpu"
    of = {
        "device": name,
        "kind": device.type,
        "dtype": dtype,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": (threads or torch.get_num_threads()) if on_cpu else None,
        "torch": str(torch.__version__),
    }
    key = tuple(of.values())
    if not anew and key in _known:
        return _known[key]

    cache, kept, trouble = None, None, list[str]()
    try:
        cache = PeakCache(cache_folder(), of)
        kept = cache.load()
    except Exception as error:  # whatever it is, a fit does not end for it
        trouble.append(f"the cache could not be read: {str(error) or repr(error)}")
    best = kept
    if anew or kept is None or kept.disturbed:
        best = better(kept, _measure(device, dtype, threads, kept, now))
        if best is not None and best != kept and cache is not None:
            try:
                best = cache.save(best)
            except Exception as error:
                trouble.append(f"it could not be kept: {str(error) or repr(error)}")
    _known[key] = None if best is None else _peak(best, best == kept, trouble)
    return _known[key]


def _measure(
    device: Any,
    dtype: str,
    threads: int | None,
    kept: CachedPeak | None,
    now: Callable[[], float],
) -> CachedPeak | None:
    """Rounds of products until two quiet ones agree, or it is long enough.

    After an earlier measurement on a busy machine a single round shows whether it is quiet now.
    """
    start, rounds, disturbed = now(), list[Rate](), ""
    while True:
        rate = multiply(device, dtype, threads=threads, seconds=ROUND_SECONDS)
        if rate is None:
            break
        rounds.append(rate)
        fastest = max(r.flops for r in rounds)
        quiet = [r for r in rounds if not r.disturbed and r.flops >= AGREE * fastest]
        if len(quiet) >= 2:
            break
        disturbed = rate.disturbed
        left = ENOUGH_SECONDS - (now() - start)
        if (kept is not None and disturbed) or left < ROUND_SECONDS:
            break
    if not rounds:
        return None
    if quiet and (len(quiet) >= 2 or len(rounds) == 1):  # a slow device has time for one alone
        disturbed = ""
    else:
        disturbed = disturbed or "its rate changed between the rounds"
    best = max(rounds, key=lambda r: r.flops)
    moment = datetime.now(timezone.utc).isoformat(timespec="minutes")
    return CachedPeak(flops=best.flops, what=best.what, measured_at=moment, disturbed=disturbed)


def _peak(best: CachedPeak, was_kept: bool, trouble: list[str]) -> Peak:
    source = f"measured: {best.what}, {best.measured_at}"
    if was_kept:
        source += ", kept since then"
    if best.disturbed:
        source += f"; maybe too low, as the machine was busy: {best.disturbed}"
    return Peak(flops=best.flops, source="; ".join([source, *trouble]))
