"""What a run can measure on this machine: every device and measure is tried, none assumed."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from statistics import median
from typing import Any

import torch

from ..equation.measures import MEASURES
from .devices import compute_dtype
from .gauges import GAUGES, GIB
from .measured_peak import measured_peak
from .nvml import NvmlProbe, driver_versions
from .peaks import peak_flops
from .places import probe_of
from .probe import Probe, ProbeLost, Reading

# The measures that a run lacks without a field of Reading; energy may also come from power.
_MEASURES = {
    "memory_used_bytes": ("memory_mean_gib", "memory_peak_gib"),
    "energy_joules": ("energy_kwh", "power_watts", "emissions_kg"),
    "throttled": ("throttled_fraction",),
    **{gauge.reading: (gauge.measure,) for gauge in GAUGES if gauge.reading == gauge.measure},
}
# How a reading is shown: as this measure, after division by this.
_SHOWN = {
    "power_watts": ("power_watts", 1),
    "memory_used_bytes": ("memory_peak_gib", GIB),
    **{gauge.reading: (gauge.measure, 1) for gauge in GAUGES if gauge.reading == gauge.measure},
}


def examine(
    precision: str = "32-true",
    seconds: float = 2.0,
    *,
    versions: Mapping[str, str],
    probes: Sequence[Probe] | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """Yield lines that describe what was found, as it is found; a few seconds per device.

    Args:
        precision: The Trainer's, e.g. ``"bf16-mixed"``, which determines the dtype of the peaks.
        seconds: How long each device is read, to see its counters move.
        versions: Of the packages that a run depends on, by name.
        probes: Of the devices. Default: all GPUs visible to torch, or else the CPU.
        now: Monotonic seconds.
    """
    installed = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"{installed}, Python {platform.python_version()}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    yield f"CUDA_VISIBLE_DEVICES: {'not set' if visible is None else visible or 'empty'}"
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 1:
        yield f"load {load:.1f}: other programs are running; measured products may be too slow"
    places = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        places.append(torch.device("mps"))
    places = places or [torch.device("cpu")]
    found = [probe_of(p) for p in places] if probes is None else probes
    if any(isinstance(probe, NvmlProbe) for probe in found):
        yield driver_versions()
    missing: dict[str, str] = {}
    for i, probe in enumerate(found):
        place = places[min(i, len(places) - 1)]
        device = probe.device
        yield f"\n{device.name}\n    {'identity':22}  {device.key} ({device.kind})"
        dtype = compute_dtype(precision, torch.nn.Linear(1, 1), place)
        yield from _speed(device.name, dtype, place, missing)
        yield from _readings(probe, seconds, now, missing)
    yield ""
    if missing:
        yield "Not available in a run here:"
        yield from (f"    {measure:22}  {why}" for measure, why in missing.items())
    else:
        yield "Every measure of the hardware is available in a run here."


def _speed(name: str, dtype: str, place: torch.device, missing: dict[str, str]) -> Iterator[str]:
    published, measured = peak_flops(name, dtype), measured_peak(place, dtype, name=name, anew=True)
    if published is not None:
        yield _line(f"peak {dtype}", f"{_tera(published.flops)}: {published.source}")
    if measured is not None:
        share = "" if published is None else f", {measured.flops / published.flops:.0%} of the peak"
        stands = ", which stands for the peak" if published is None else ""
        yield _line("matrix product", f"{_tera(measured.flops)}{share}: {measured.source}{stands}")
    if published is None and measured is None:
        why = f"no peak of {name} in {dtype} is known, and no such product ran on it"
        missing.update(capacity_flops=why, mfu=why)
        yield _line(f"peak {dtype}", why)


def _readings(
    probe: Probe, seconds: float, now: Callable[[], float], missing: dict[str, str]
) -> Iterator[str]:
    """Read as fast as the device answers, to time the changes of its counter."""
    readings: list[tuple[float, Reading]] = []
    end, lost = now() + seconds, ""
    try:
        while (t := now()) < end or len(readings) < 2:
            readings.append((t, probe.read()))
    except ProbeLost as error:
        lost = str(error)
    why_not = dict(probe.missing)
    probe.close()
    last = {
        f.name: next(
            (v for _, r in reversed(readings) if (v := getattr(r, f.name)) is not None), None
        )
        for f in fields(Reading)
    }
    for name, value in last.items():
        if value is None:
            yield _line(name, f"unavailable: {lost or why_not.get(name, 'no reading')}")
            continue
        period = f", a counter that changes every {_period(readings)}"
        yield _line(name, _shown(name, value) + (period if name == "energy_joules" else ""))
    if lost:
        yield _line("lost while being read", lost)
    if last["energy_joules"] is None and last["power_watts"] is not None:
        yield _line("energy", "estimated in a run, by integrating the power")
        last["energy_joules"] = 0.0
    for name, measures in _MEASURES.items():
        if last[name] is None:
            missing.update(dict.fromkeys(measures, lost or why_not.get(name, "no reading")))
    yield _line(
        "a reading takes",
        f"{1e3 * (readings[-1][0] - readings[0][0]) / max(1, len(readings) - 1):.2f} ms",
    )


def _shown(name: str, value: Any) -> str:
    if name == "throttled":
        return f"yes: by {' and '.join(sorted(value))}" if value else "no"
    if name == "energy_joules":  # a counter from an arbitrary origin: no measure
        return f"{value:.1f} J"
    measure, unit = _SHOWN[name]
    row = MEASURES[measure]
    return f"{value / unit:{row.shown}} {row.unit}".rstrip()


def _period(readings: Sequence[tuple[float, Reading]]) -> str:
    changes, before = [], None
    for t, reading in readings:
        if reading.energy_joules is not None and reading.energy_joules != before:
            changes.append(t)
            before = reading.energy_joules
    gaps = [b - a for a, b in itertools.pairwise(changes[1:])]
    if not gaps:
        return f"more than {readings[-1][0] - readings[0][0]:.1f} s: it was not seen to"
    return f"{1e3 * median(gaps):.0f} ms"


def _line(what: str, text: str) -> str:
    return f"    {what:22}  {text}"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.4g} TFLOP/s"
