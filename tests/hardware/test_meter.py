"""Sums over training time against their definition."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.hardware.meter import Meter
from lightning_lscore.hardware.probe import Reading
from lightning_lscore.hardware.totals import Totals

EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, 6.0),  # seconds since the event before; beyond 4 is a gap
        st.sampled_from(["read", "read", "read", "resume", "pause"]),
        st.none() | st.floats(0, 1),  # busy
        st.none() | st.floats(1, 1000),  # watts
        st.none() | st.integers(0, 2**40),  # memory
        st.none() | st.floats(1, 3000),  # clock
        st.none() | st.frozensets(st.sampled_from(["power", "heat", "fault"])),  # throttled
    ),
    max_size=40,
)
MAX_GAP = 4.0


def reference(events):
    """The definition, written without running sums: pieces of time, and the readings around each.

    A piece of time between two neighbouring events counts if training was on. It is observed if
    the readings before and after it are close enough, and takes `busy` from the one after and the
    power from the line between the two readings of power around it (its mean in the middle).
    """
    t, training, pieces, reads = 0.0, False, [], []
    for wait, kind, busy, watts, memory, clock, throttled in events:
        if training and wait > 0:
            pieces.append((t, t + wait))
        t += wait
        training = {"resume": True, "pause": False}.get(kind, training)
        if kind == "read":
            reads.append((t, len(pieces), busy, watts, memory, clock, throttled))
    training_s = observed = joules = powered = 0.0
    sums, known = [0.0] * 6, [0.0] * 6

    def around(i, rows):
        before = [r for r in rows if r[1] <= i]
        after = [r for r in rows if r[1] > i]
        return (before[-1], after[0]) if before and after else None

    for i, (start, end) in enumerate(pieces):
        seconds = end - start
        training_s += seconds
        pair = around(i, reads)
        if pair and pair[1][0] - pair[0][0] <= MAX_GAP:
            if any(value is not None for value in pair[1][2:]):
                observed += seconds
            busy, _, memory, clock, causes = pair[1][2:]
            held = [None] * 3 if causes is None else [causes != set()]
            held += [] if causes is None else [cause in causes for cause in ("power", "heat")]
            for k, value in enumerate((busy, memory, clock, *held)):
                if value is not None:
                    known[k] += seconds
                    sums[k] += seconds * value
        pair = around(i, [r for r in reads if r[3] is not None])
        if pair and pair[1][0] - pair[0][0] <= MAX_GAP:
            powered += seconds
            joules += seconds * (pair[0][3] + pair[1][3]) / 2
    return Totals(
        training_seconds=training_s,
        observed_seconds=observed,
        busy_seconds=sums[0],
        busy_known_seconds=known[0],
        memory_byte_seconds=sums[1],
        memory_known_seconds=known[1],
        sm_clock_mhz_seconds=sums[2],
        sm_clock_known_seconds=known[2],
        throttled_seconds=sums[3],
        throttled_by_power_seconds=sums[4],
        throttled_by_heat_seconds=sums[5],
        throttled_known_seconds=known[3],
        energy_joules=joules,
        energy_estimated_joules=joules,
        energy_known_seconds=powered,
        memory_peak_bytes=max((r[4] or 0 for r in reads), default=0),
        readings=len(reads),
    )


def run(events, counter=None, max_gap=MAX_GAP):
    """A meter after the events; `counter(t)` is what its energy counter shows."""
    meter, t = Meter(max_gap=max_gap), 0.0
    for wait, kind, busy, watts, memory, clock, throttled in events:
        t += wait
        if kind == "read":
            joules = None if counter is None else counter(t)
            meter.add(
                Reading(
                    busy_fraction=busy,
                    power_watts=watts,
                    energy_joules=joules,
                    memory_used_bytes=memory,
                    sm_clock_mhz=clock,
                    throttled=throttled,
                ),
                t,
            )
        else:
            getattr(meter, kind)(t)
    return meter


def close(a: Totals, b: Totals) -> bool:
    return all(
        getattr(a, f.name) == pytest.approx(getattr(b, f.name), rel=1e-9, abs=1e-9)
        for f in fields(Totals)
    )


@settings(deadline=None)
@given(EVENTS)
def test_the_meter_agrees_with_the_definition(events):
    assert close(run(events).totals(), reference(events))


@settings(deadline=None)
@given(EVENTS)
def test_totals_stay_within_their_bounds(events):
    totals = run(events, counter=lambda t: 100 * t).totals()

    assert 0 <= totals.busy_seconds <= totals.busy_known_seconds + 1e-9
    assert totals.busy_known_seconds <= totals.observed_seconds + 1e-9
    assert 0 <= totals.throttled_seconds <= totals.throttled_known_seconds + 1e-9
    assert 0 <= totals.throttled_by_power_seconds <= totals.throttled_seconds + 1e-9
    assert 0 <= totals.throttled_by_heat_seconds <= totals.throttled_seconds + 1e-9
    use = totals.use()
    assert (use.memory_mean_gib or 0) <= (use.memory_peak_gib or 0) * (1 + 1e-9)
    assert totals.sm_clock_known_seconds <= totals.observed_seconds + 1e-9
    assert totals.observed_seconds <= totals.training_seconds + 1e-9
    assert totals.energy_known_seconds <= totals.training_seconds + 1e-9


@settings(deadline=None)
@given(EVENTS, st.floats(1, 1000))
def test_a_steady_counter_charges_its_power_for_all_training_between_its_readings(events, watts):
    events = [(wait, kind, busy, None, 1, None, None) for wait, kind, busy, *_ in events]
    meter = run(events, counter=lambda t: 7.0 + watts * t)
    between = run(events, max_gap=float("inf")).totals().observed_seconds

    assert meter.missing == {}
    assert meter.totals().energy_known_seconds == pytest.approx(between, abs=1e-9)
    assert meter.totals().energy_joules == pytest.approx(watts * between, rel=1e-6, abs=1e-6)
    assert meter.totals().energy_estimated_joules == 0


def steady(meter, start, stop, *, watts=None, joules=None, busy=0.5):
    """Readings at every whole second from start to stop, both included."""
    for t in range(start, stop + 1):
        counter = None if joules is None else joules(t)
        meter.add(Reading(busy_fraction=busy, power_watts=watts, energy_joules=counter), float(t))


def test_clock_and_throttling_are_means_over_the_time_for_which_they_are_known():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    meter.add(Reading(sm_clock_mhz=300, throttled=frozenset()), 0.0)  # idle before; covers nothing
    meter.add(Reading(sm_clock_mhz=1980, throttled=frozenset()), 3.0)
    meter.add(Reading(sm_clock_mhz=1410, throttled=frozenset({"power"})), 4.0)
    meter.add(Reading(busy_fraction=1.0), 6.0)  # neither is known
    meter.add(Reading(sm_clock_mhz=990, throttled=frozenset({"heat"})), 60.0)  # after a gap
    meter.pause(60.0)

    totals = meter.totals()
    assert totals.use().sm_clock_mhz == pytest.approx((3 * 1980 + 1410) / 4)
    assert totals.use().throttled_fraction == pytest.approx(1 / 4)
    assert totals.sm_clock_known_seconds == totals.throttled_known_seconds == 4


def test_a_clock_that_nobody_throttled_is_zero_throttled_and_an_unknown_one_is_none():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    for t in range(5):
        meter.add(Reading(busy_fraction=1.0, throttled=frozenset()), float(t))

    assert meter.totals().use().throttled_fraction == 0.0
    assert meter.totals().use().sm_clock_mhz is None
    assert Totals().use().throttled_fraction is None


def test_validation_is_not_charged_even_if_its_boundary_readings_come_late():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10, joules=lambda t: 300.0 * t)
    meter.pause(10.0)
    meter.add(
        Reading(busy_fraction=0.5, energy_joules=3000.0 + 30.0), 10.1
    )  # late, at the same power
    meter.resume(610.0)
    meter.add(Reading(busy_fraction=1.0, energy_joules=300.0 * 610), 610.0)
    steady(meter, 611, 620, joules=lambda t: 300.0 * t)
    meter.pause(620.0)

    totals = meter.totals()
    assert totals.training_seconds == pytest.approx(20)
    assert totals.observed_seconds == pytest.approx(20)
    assert totals.busy_seconds == pytest.approx(10)
    assert totals.energy_joules == pytest.approx(300 * 20)
    assert totals.energy_is_counter


def test_a_gap_is_not_covered_but_a_counters_difference_bridges_it():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10, joules=lambda t: 300.0 * t)
    steady(meter, 70, 80, joules=lambda t: 300.0 * t)
    meter.pause(80.0)

    totals = meter.totals()
    assert totals.training_seconds == 80
    assert totals.observed_seconds == 20
    assert totals.use().coverage == 0.25
    assert totals.use().busy_fraction == 0.5
    assert totals.energy_joules == pytest.approx(300 * 80)


def test_a_gap_in_power_is_not_filled_in():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10, watts=300.0)
    steady(meter, 70, 80, watts=300.0)

    totals = meter.totals()
    assert totals.energy_joules == pytest.approx(300 * 20)
    assert totals.energy_known_seconds == 20
    assert totals.use().power_watts == pytest.approx(300)


@pytest.mark.parametrize(
    ("counter", "why"),
    [
        (lambda t: 300.0 * min(t, 10), "stood still"),
        (lambda t: 300.0 * t if t <= 10 else 300.0 * (t - 10), "ran backwards"),
        (lambda t: 300.0 * t % 3300, "ran backwards"),  # it wraps
        (lambda t: 300.0 * t if t <= 10 else 2.0**61, "leapt"),
    ],
)
def test_an_unsound_counter_gives_way_to_power_and_says_why(counter, why):
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 30, watts=300.0, joules=counter)

    totals = meter.totals()
    assert totals.energy_joules == pytest.approx(300 * 30)
    assert totals.energy_estimated_joules == pytest.approx(300 * 20)
    assert not totals.energy_is_counter
    assert why in meter.missing["energy_joules"]


def test_an_unsound_counter_without_power_leaves_the_rest_unknown():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 30, joules=lambda t: 300.0 * min(t, 10))

    totals = meter.totals()
    assert totals.energy_known_seconds == 10
    assert totals.use().power_watts == pytest.approx(300)


def test_a_counter_that_ticks_more_slowly_than_it_is_read_loses_nothing():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 30, watts=1.0, joules=lambda t: 300.0 * (t // 3 * 3))

    totals = meter.totals()
    assert totals.energy_joules == pytest.approx(300 * 30)
    assert totals.energy_is_counter
    steady(meter, 31, 32, watts=1.0, joules=lambda t: 300.0 * 30)  # its next tick will tell
    assert meter.totals().energy_joules == totals.energy_joules
    assert meter.totals().energy_is_counter


def test_a_counter_that_never_moved_is_replaced_by_power_at_once():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 3, watts=300.0, joules=lambda t: 5.0)

    assert meter.totals().energy_joules == pytest.approx(900)
    assert not meter.totals().energy_is_counter


def test_a_counter_that_speaks_late_takes_over_from_power():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10, watts=300.0)
    steady(meter, 11, 20, watts=300.0, joules=lambda t: 200.0 * t)

    totals = meter.totals()
    assert totals.energy_estimated_joules == pytest.approx(300 * 11)
    assert totals.energy_joules == pytest.approx(300 * 11 + 200 * 9)


@pytest.mark.parametrize("watts", [-1.0, float("nan"), float("inf"), 4_294_967.295])
def test_impossible_power_is_missing(watts):
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10, watts=watts)

    assert meter.totals().use().power_watts is None
    assert not meter.totals().energy_is_counter


def test_what_was_never_reported_is_none_not_zero():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    for t in range(5):
        meter.add(Reading(), float(t))

    totals = meter.totals()
    assert totals.training_seconds == 4
    assert totals.use().coverage == 0
    assert totals.use().busy_fraction is None
    assert totals.use().power_watts is None
    assert Totals().use().coverage is None


def test_an_idle_device_is_zero_not_none():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 5, busy=0.0)

    assert meter.totals().use().busy_fraction == 0.0


def test_an_interruption_is_not_bridged_even_if_it_is_short():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10, joules=lambda t: 300.0 * t)
    meter.interrupt()
    steady(meter, 12, 20, joules=lambda t: 200.0 * (t - 12))  # the driver began anew

    totals = meter.totals()
    assert totals.observed_seconds == totals.energy_known_seconds == 18
    assert totals.energy_joules == pytest.approx(300 * 10 + 200 * 8)
    assert totals.energy_is_counter
    assert meter.missing == {}


def test_what_power_told_before_an_interruption_is_kept():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 3, watts=300.0, joules=lambda t: 5.0)
    meter.interrupt()

    assert meter.totals().energy_joules == pytest.approx(900)


def test_ranks_that_share_a_device_count_its_time_once_and_their_work_each():
    def rank(busy, owner):
        meter = Meter(max_gap=4, owner=owner)
        meter.resume(0.0)
        steady(meter, 0, 10, busy=busy, joules=lambda t: 50.0 * t)
        meter.pause(10.0)
        return meter.totals()

    totals = rank(0.4, True) + rank(0.3, False) + rank(0.2, False)
    assert totals.training_seconds == totals.observed_seconds == 10
    assert totals.use().busy_fraction == pytest.approx(0.9)
    assert totals.energy_joules == pytest.approx(500)
    assert totals.readings == 33


def test_totals_up_to_now_show_a_device_that_does_not_answer():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10)

    assert meter.totals(40.0).training_seconds == 40
    assert meter.totals(40.0).use().coverage == 0.25
    assert meter.totals().use().coverage == 1
    meter.pause(40.0)
    assert meter.totals(99.0).training_seconds == 40


def test_times_that_run_backwards_count_as_the_latest():
    meter = Meter(max_gap=4)
    meter.resume(5.0)
    meter.add(Reading(busy_fraction=1.0), 6.0)
    meter.add(Reading(busy_fraction=1.0), 3.0)
    meter.pause(2.0)

    assert meter.totals().training_seconds == 1
    assert meter.totals().busy_seconds == 0
    meter.resume(2.0)
    meter.pause(7.0)
    assert meter.totals().training_seconds == 2


@pytest.mark.parametrize("max_gap", [0, -1, float("nan")])
def test_a_meter_wants_a_positive_gap(max_gap):
    with pytest.raises(ValueError, match="max_gap must be a positive number"):
        Meter(max_gap=max_gap)
