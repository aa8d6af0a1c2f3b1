"""The table of what is averaged over time names fields that are there."""

from __future__ import annotations

from dataclasses import fields

import pytest

from lightning_lscore.equation.evidence import DeviceUse
from lightning_lscore.equation.measures import MEASURES
from lightning_lscore.hardware.gauges import GAUGES
from lightning_lscore.hardware.meter import Meter
from lightning_lscore.hardware.probe import Reading
from lightning_lscore.hardware.totals import Totals

FULL = Reading(
    busy_fraction=0.5,
    memory_used_bytes=3 * 2**30,
    sm_clock_mhz=1500.0,
    throttled=frozenset({"power", "heat"}),
)


@pytest.mark.parametrize("gauge", GAUGES, ids=lambda gauge: gauge.measure)
def test_a_gauge_is_summed_and_its_mean_is_what_the_device_showed_all_the_time(gauge):
    """In the units of its measure; a reading without it leaves the measure unknown."""
    assert gauge.measure in {f.name for f in fields(DeviceUse)}
    assert gauge.measure in MEASURES
    assert {gauge.sum, gauge.known} <= {f.name for f in fields(Totals)}
    assert gauge.sum not in Totals.MAXIMA

    def seen(reading):
        meter = Meter(max_gap=4.0)
        meter.resume(0.0)
        meter.add(reading, 0.0)
        meter.add(reading, 2.0)
        return meter.totals()

    assert getattr(seen(FULL), gauge.known) == 2.0
    assert getattr(seen(FULL).use(), gauge.measure) == gauge.value(FULL) / gauge.unit
    assert getattr(seen(Reading()).use(), gauge.measure) is None


def test_no_gauge_is_listed_twice_and_the_cpu_time_alone_adds_up():
    """Processes that share a device would count all else more than once."""
    assert len({gauge.sum for gauge in GAUGES}) == len(GAUGES)
    assert len({gauge.measure for gauge in GAUGES}) == len(GAUGES)
    assert [gauge.measure for gauge in GAUGES if gauge.adds_up] == ["busy_fraction"]
