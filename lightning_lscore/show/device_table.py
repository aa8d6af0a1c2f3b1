"""What each device of a run did, one a line."""

from __future__ import annotations

import math

from ..equation.measures import MEASURES
from ..record.record import Record
from .cells import columns

SHOWN_DEVICES = 16


_TITLES = {
    "busy_fraction": "busy",
    "energy_kwh": "energy",
    "power_watts": "power",
    "memory_mean_gib": "memory",
    "memory_peak_gib": "peak",
    "sm_clock_mhz": "clock",
    "throttled_fraction": "throttled",
    "throttled_by_power_fraction": "by power",
    "throttled_by_heat_fraction": "by heat",
    "coverage": "sampled",
}


def device_table(record: Record) -> str:
    """Return what each device did in training since the run began; "" if nothing is known.

    Of many devices it shows the least busy: they tell who waits.
    """
    use = record.hardware
    known = [name for name in _TITLES if any(getattr(u, name) is not None for u in use.values())]
    if not known:
        return ""
    keys = sorted(use, key=lambda key: _or_infinite(use[key].busy_fraction))[:SHOWN_DEVICES]
    names = {device.key: device.name for device in record.devices}
    rows = [("", "", *(_TITLES[name] for name in known))]
    for key in keys:
        cells = (_cell(name, getattr(use[key], name)) for name in known)
        rows.append((f"   {names.get(key, 'before a resume')}", key, *cells))
    more = len(use) - len(keys)
    last = [f"   and {more} more, which were busy for more of the time"] if more else []
    return "\n".join(["Devices in training, since the run began:", *columns(rows, left=2), *last])


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "coverage":  # of the other measures, and none of its own
        return f"{value:.1%}"
    return f"{value:{MEASURES[name].shown}} {MEASURES[name].unit}".rstrip()
