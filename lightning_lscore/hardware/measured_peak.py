"""The peak of a device without a published one: measured once, and kept for later runs.

Other programs slow a measurement down. A figure from a quiet machine is kept for good, and later
runs compare however busy the machine is when they start. A figure from a busy machine is marked as
such, and the next process measures again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from .peak_cache import CachedPeak, PeakCache, better, cache_folder
from .peaks import Peak
from .products import Rate, multiply

__all__ = ["measured_peak"]

AGREE = 0.97
"""Rounds on a quiet machine differ by less than this factor."""

ROUND_SECONDS = 0.3
ENOUGH_SECONDS = 1.5
"""No round starts that would end later than this after the start of the first."""

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
    """Return the best rate of a device's matrix products, from the cache or else measured.

    It replaces a published peak, of which products reach 60 to 95 %. A measurement takes about
    0.6 s on a quiet machine and up to 1.5 s on a busy one; see ``products.multiply``. It works
    without a usable cache, too, and then measures in each process.

    Args:
        device: A ``torch.device`` or its name.
        dtype: As for ``peak_flops``.
        name: The vendor's name of the device. With the dtype, the threads and torch's version it
            identifies a kept peak.
        threads: CPU threads; None: as many as torch uses.
        anew: Measure even if the peak is known. The best of both counts.
        now: Seconds of wall time.

    Returns:
        None if torch cannot multiply in that precision there, or has no memory for it.
    """
    of = _identity(device, dtype, name, threads)
    key = tuple(of.values())
    if not anew and key in _known:
        return _known[key]

    cache, kept, trouble = None, None, list[str]()
    try:
        cache = PeakCache(cache_folder(), of)
        kept = cache.load()
    except Exception as error:  # must not end a fit, whatever it is
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


def _identity(
    device: Any, dtype: str, name: str, threads: int | None
) -> dict[str, str | int | None]:
    """Return what two measurements must have in common to give the same peak."""
    import torch

    kind = torch.device(device).type
    return {
        "device": name,
        "kind": kind,
        "dtype": dtype,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": (threads or torch.get_num_threads()) if kind == "cpu" else None,
        "torch": str(torch.__version__),
    }


def _measure(
    device: Any,
    dtype: str,
    threads: int | None,
    kept: CachedPeak | None,
    now: Callable[[], float],
) -> CachedPeak | None:
    """Measure until two quiet rounds agree, or until the time is up.

    After an earlier measurement on a busy machine, one round decides whether it is quiet now.
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
    if quiet and (len(quiet) >= 2 or len(rounds) == 1):  # a slow device has time for one only
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
