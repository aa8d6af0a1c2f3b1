"""Sums that join, and what they tell in the units of the measures."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.equation.evidence import DeviceUse
from lightning_lscore.hardware.totals import Totals


@settings(deadline=None)
@given(st.lists(st.builds(Totals, **{f.name: st.integers(0, 10**6) for f in fields(Totals)})))
def test_totals_join_in_any_order_and_survive_json(parts):
    whole = sum(parts, Totals())

    assert whole == sum(reversed(parts), Totals())
    assert whole.readings == sum(p.readings for p in parts)
    assert whole.memory_peak_bytes == max((p.memory_peak_bytes for p in parts), default=0)
    assert Totals(**json.loads(json.dumps(asdict(whole)))) == whole


def test_units_are_converted_once_and_a_sum_over_devices_gives_their_mean():
    """Joules become kWh, bytes GiB; what was not reported is None; the busy fraction ends at 1."""
    one = Totals(
        training_seconds=10.0,
        observed_seconds=10.0,
        busy_seconds=12.0,
        busy_known_seconds=10.0,
        energy_joules=3.6e6,
        energy_known_seconds=10.0,
        memory_byte_seconds=10.0 * 2**30,
        memory_known_seconds=10.0,
        memory_peak_bytes=2**31,
    )
    other = Totals(training_seconds=10.0, memory_peak_bytes=2**30)

    assert one.use() == DeviceUse(
        coverage=1.0,
        busy_fraction=1.0,
        memory_mean_gib=1.0,
        memory_peak_gib=2.0,
        power_watts=3.6e5,
        energy_kwh=1.0,
    )
    assert other.use() == DeviceUse(coverage=0.0, memory_peak_gib=1.0)
    assert (one + other).use() == replace(one.use(), coverage=0.5)
    assert Totals().use() == DeviceUse()


def test_totals_of_before_the_clock_was_read_load_as_unknown():
    old = {"training_seconds": 7.0, "observed_seconds": 6.0, "readings": 6}

    totals = Totals(**old) + Totals(sm_clock_mhz_seconds=3000.0, sm_clock_known_seconds=2.0)
    assert totals.use().sm_clock_mhz == 1500
    assert totals.use().throttled_fraction is None
