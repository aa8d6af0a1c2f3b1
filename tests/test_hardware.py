from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import asdict, dataclass, field, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.hardware import (
    RETRY_SECONDS,
    Device,
    Meter,
    ProbeLost,
    Reading,
    Sampler,
    SilentProbe,
    Totals,
)

PATIENCE = 20.0  # seconds that a handshake with the thread may take before a test gives up
DEVICE = Device(key="GPU-1", name="Invented GPU", kind="cuda")


# ---------------------------------------------------------------- Meter

EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, 6.0),  # seconds since the event before; beyond 4 is a gap
        st.sampled_from(["read", "read", "read", "resume", "pause"]),
        st.none() | st.floats(0, 1),  # busy
        st.none() | st.floats(1, 1000),  # watts
        st.none() | st.integers(0, 2**40),  # memory
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
    for wait, kind, busy, watts, memory in events:
        if training and wait > 0:
            pieces.append((t, t + wait))
        t += wait
        training = {"resume": True, "pause": False}.get(kind, training)
        if kind == "read":
            reads.append((t, len(pieces), busy, watts, memory))
    training_s = observed = busy_s = known = joules = powered = 0.0

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
            if pair[1][2] is not None:
                known += seconds
                busy_s += seconds * pair[1][2]
        pair = around(i, [r for r in reads if r[3] is not None])
        if pair and pair[1][0] - pair[0][0] <= MAX_GAP:
            powered += seconds
            joules += seconds * (pair[0][3] + pair[1][3]) / 2
    return Totals(
        training_seconds=training_s,
        observed_seconds=observed,
        busy_seconds=busy_s,
        busy_known_seconds=known,
        energy_joules=joules,
        energy_estimated_joules=joules,
        energy_known_seconds=powered,
        memory_peak_bytes=max((r[4] or 0 for r in reads), default=0),
        readings=len(reads),
    )


def run(events, counter=None, max_gap=MAX_GAP):
    """A meter after the events; `counter(t)` is what its energy counter shows."""
    meter, t = Meter(max_gap=max_gap), 0.0
    for wait, kind, busy, watts, memory in events:
        t += wait
        if kind == "read":
            joules = None if counter is None else counter(t)
            meter.add(
                Reading(
                    busy=busy,
                    power_watts=watts,
                    energy_joules=joules,
                    memory_used_bytes=memory,
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
    assert totals.observed_seconds <= totals.training_seconds + 1e-9
    assert totals.energy_known_seconds <= totals.training_seconds + 1e-9


@settings(deadline=None)
@given(EVENTS, st.floats(1, 1000))
def test_a_steady_counter_charges_its_power_for_all_training_between_its_readings(events, watts):
    events = [(wait, kind, busy, None, 1) for wait, kind, busy, _, _ in events]
    meter = run(events, counter=lambda t: 7.0 + watts * t)
    between = run(events, max_gap=float("inf")).totals().observed_seconds

    assert meter.reasons == {}
    assert meter.totals().energy_known_seconds == pytest.approx(between, abs=1e-9)
    assert meter.totals().energy_joules == pytest.approx(watts * between, rel=1e-6, abs=1e-6)
    assert meter.totals().energy_estimated_joules == 0


def steady(meter, start, stop, *, watts=None, joules=None, busy=0.5):
    """Readings at every whole second from start to stop, both included."""
    for t in range(start, stop + 1):
        counter = None if joules is None else joules(t)
        meter.add(Reading(busy=busy, power_watts=watts, energy_joules=counter), float(t))


def test_validation_is_not_charged_even_if_its_boundary_readings_come_late():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10, joules=lambda t: 300.0 * t)
    meter.pause(10.0)
    meter.add(Reading(busy=0.5, energy_joules=3000.0 + 30.0), 10.1)  # late, at the same power
    meter.resume(610.0)
    meter.add(Reading(busy=1.0, energy_joules=300.0 * 610), 610.0)
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
    assert totals.coverage == 0.25
    assert totals.busy_fraction == 0.5
    assert totals.energy_joules == pytest.approx(300 * 80)


def test_a_gap_in_power_is_not_filled_in():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10, watts=300.0)
    steady(meter, 70, 80, watts=300.0)

    totals = meter.totals()
    assert totals.energy_joules == pytest.approx(300 * 20)
    assert totals.energy_known_seconds == 20
    assert totals.power_watts == pytest.approx(300)


@pytest.mark.parametrize(
    ("counter", "why"),
    [
        (lambda t: 300.0 * min(t, 10), "stood still"),
        (lambda t: 300.0 * t if t <= 10 else 300.0 * (t - 10), "ran backwards"),
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
    assert why in meter.reasons["energy_joules"]


def test_an_unsound_counter_without_power_leaves_the_rest_unknown():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 30, joules=lambda t: 300.0 * min(t, 10))

    totals = meter.totals()
    assert totals.energy_known_seconds == 10
    assert totals.power_watts == pytest.approx(300)


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

    assert meter.totals().power_watts is None
    assert not meter.totals().energy_is_counter


def test_what_was_never_reported_is_none_not_zero():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    for t in range(5):
        meter.add(Reading(), float(t))

    totals = meter.totals()
    assert totals.training_seconds == 4
    assert totals.coverage == 0
    assert totals.busy_fraction is None
    assert totals.power_watts is None
    assert Totals().coverage is None


def test_an_idle_device_is_zero_not_none():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 5, busy=0.0)

    assert meter.totals().busy_fraction == 0.0


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
    assert meter.reasons == {}


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
    assert totals.busy_fraction == pytest.approx(0.9)
    assert totals.energy_joules == pytest.approx(500)
    assert totals.readings == 33


def test_totals_up_to_now_show_a_device_that_does_not_answer():
    meter = Meter(max_gap=4)
    meter.resume(0.0)
    steady(meter, 0, 10)

    assert meter.totals(40.0).training_seconds == 40
    assert meter.totals(40.0).coverage == 0.25
    assert meter.totals().coverage == 1
    meter.pause(40.0)
    assert meter.totals(99.0).training_seconds == 40


def test_times_that_run_backwards_count_as_the_latest():
    meter = Meter(max_gap=4)
    meter.resume(5.0)
    meter.add(Reading(busy=1.0), 6.0)
    meter.add(Reading(busy=1.0), 3.0)
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


@settings(deadline=None)
@given(st.lists(st.builds(Totals, **{f.name: st.integers(0, 10**6) for f in fields(Totals)})))
def test_totals_join_in_any_order_and_survive_json(parts):
    whole = sum(parts, Totals())

    assert whole == sum(reversed(parts), Totals())
    assert whole.readings == sum(p.readings for p in parts)
    assert whole.memory_peak_bytes == max((p.memory_peak_bytes for p in parts), default=0)
    assert Totals(**json.loads(json.dumps(asdict(whole)))) == whole


# ---------------------------------------------------------------- Sampler


class Clock:
    """Time that moves only when a test says so."""

    def __init__(self):
        self.t = 100.0

    def __call__(self):
        return self.t


@dataclass
class FakeProbe:
    """Busy always; counts its readings, can be held up, and fails on demand."""

    device: Device = DEVICE
    busy: float = 1.0
    reads: int = 0
    closed: int = 0
    error: Exception | None = None
    gate: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    enough: threading.Event = field(default_factory=threading.Event)
    reasons: dict[str, str] = field(default_factory=dict)

    def read(self):
        self.reads += 1
        self.entered.set()
        if self.reads >= 5:
            self.enough.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return Reading(busy=self.busy)

    def close(self):
        self.closed += 1


@dataclass
class PlainProbe:
    """A probe that pickles."""

    device: Device = DEVICE

    @property
    def reasons(self):
        return {}

    def read(self):
        return Reading(busy=1.0)

    def close(self):
        pass


@pytest.fixture
def started():
    """Makes started samplers, which read at the marks of training only, and stops them."""
    samplers = []

    def start(*probes, **options):
        options = {"interval": 3600.0, "now": Clock(), **options}
        sampler = Sampler(probes, **options)
        sampler.start()
        samplers.append(sampler)
        return sampler

    yield start
    for sampler in samplers:
        sampler.stop(PATIENCE)
        assert not any(t.name == "lscore-sampler" for t in threading.enumerate())


def train(sampler, clock, seconds):
    """Training of so many seconds, with a reading at either end."""
    sampler.resume()
    sampler.totals(PATIENCE)
    clock.t += seconds
    sampler.pause()
    return sampler.totals(PATIENCE)


def test_totals_after_pause_include_the_reading_at_the_boundary(started):
    clock, probe = Clock(), FakeProbe()
    sampler = started(probe, now=clock)

    assert train(sampler, clock, 10).busy_seconds == 10
    clock.t += 1000  # validation
    totals = train(sampler, clock, 5)
    assert totals == Totals(
        training_seconds=15,
        observed_seconds=15,
        busy_seconds=15,
        busy_known_seconds=15,
        readings=4,
    )
    assert probe.reads == 4


def test_nothing_is_read_before_training_or_while_it_is_paused(started):
    probe = FakeProbe()
    sampler = started(probe, interval=1e-4)
    assert not probe.entered.wait(0.02)  # 200 intervals
    sampler.resume()
    sampler.pause()
    sampler.totals(PATIENCE)
    probe.entered.clear()

    assert not probe.entered.wait(0.02)


def test_the_thread_reads_at_every_interval(started):
    probe = FakeProbe()
    sampler = started(probe, interval=1e-3)
    sampler.resume()

    assert probe.enough.wait(PATIENCE)


def test_training_does_not_wait_for_a_device_that_hangs(started):
    clock, probe = Clock(), FakeProbe(gate=threading.Event())
    sampler = started(probe, now=clock)
    sampler.resume()
    assert probe.entered.wait(PATIENCE)
    clock.t += 10
    sampler.pause()  # the probe is still held up: if this waited, the test would time out

    assert sampler.totals(timeout=0.01).coverage == 0
    probe.gate.set()
    assert sampler.totals(PATIENCE).readings == 2
    assert sampler.totals(PATIENCE).training_seconds == 10


def test_stop_waits_no_longer_than_told_for_a_device_that_hangs(started):
    probe = FakeProbe(gate=threading.Event())
    sampler = started(probe)
    sampler.resume()
    assert probe.entered.wait(PATIENCE)
    thread = sampler._thread

    sampler.stop(timeout=0.01)
    assert thread.is_alive()
    probe.gate.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert probe.closed == 1


@pytest.mark.parametrize(
    "error", [ProbeLost("GPU is lost"), OSError("driver reloaded"), ZeroDivisionError()]
)
def test_a_lost_device_costs_one_message_and_its_coverage_and_nothing_else(started, error):
    clock, sound = Clock(), FakeProbe()
    lost = FakeProbe(device=Device(key="GPU-2", name="Lost GPU", kind="cuda"))
    sampler = started(lost, sound, now=clock)
    train(sampler, clock, 10)

    lost.error = error
    for _ in range(5):
        train(sampler, clock, RETRY_SECONDS)
    (message,) = sampler.messages()
    assert "Lost GPU no longer answers" in message
    assert sampler.messages() == []
    assert sampler.reasons() == {"GPU-1": {}, "GPU-2": {"device": str(error) or repr(error)}}
    assert lost.closed

    each = sampler.by_device(PATIENCE)
    assert each["GPU-1"].coverage == 1
    assert each["GPU-2"].observed_seconds == 10
    assert each["GPU-2"].training_seconds == each["GPU-1"].training_seconds

    lost.error = None
    clock.t += RETRY_SECONDS
    train(sampler, clock, 10)
    assert sampler.by_device(PATIENCE)["GPU-2"].observed_seconds == 20
    assert sampler.reasons()["GPU-2"] == {}


def test_a_lost_device_is_left_alone_for_a_while(started):
    clock, probe = Clock(), FakeProbe(error=ProbeLost("gone"))
    sampler = started(probe, now=clock)

    train(sampler, clock, RETRY_SECONDS - 1)
    assert probe.reads == 1
    train(sampler, clock, 2)
    assert probe.reads == 2


def test_where_warnings_are_errors_the_thread_lives_on(started):
    probe = FakeProbe(error=UserWarning("raised as an error"))
    clock = Clock()
    sampler = started(probe, now=clock)
    train(sampler, clock, 10)
    probe.error = None
    clock.t += RETRY_SECONDS

    assert train(sampler, clock, 10).observed_seconds == 10


def test_marks_that_repeat_change_nothing(started):
    clock, probe = Clock(), FakeProbe()
    sampler = started(probe, now=clock)
    sampler.start()
    sampler.resume()
    clock.t += 5
    sampler.resume()
    clock.t += 5
    sampler.pause()
    clock.t += 5
    sampler.pause()

    assert sampler.totals(PATIENCE).training_seconds == 10


def test_stop_ends_training_time_reads_once_more_and_can_be_called_again(started):
    clock, probe = Clock(), FakeProbe()
    sampler = started(probe, now=clock)
    sampler.resume()
    sampler.totals(PATIENCE)
    clock.t += 10
    sampler.stop(PATIENCE)
    sampler.stop(PATIENCE)
    clock.t += 10
    sampler.resume()

    assert sampler.totals() == Totals(
        training_seconds=10,
        observed_seconds=10,
        busy_seconds=10,
        busy_known_seconds=10,
        readings=2,
    )
    assert probe.closed == 1


def test_a_sampler_started_again_adds_to_its_totals(started):
    clock = Clock()
    sampler = started(FakeProbe(), now=clock)
    train(sampler, clock, 10)
    sampler.stop(PATIENCE)
    clock.t += 100
    sampler.start()

    assert train(sampler, clock, 10).observed_seconds == 20


def test_only_owned_devices_count_time(started):
    clock = Clock()
    sampler = started(FakeProbe(busy=0.5), now=clock, owned=())

    totals = train(sampler, clock, 10)
    assert totals.busy_seconds == 5
    assert totals.training_seconds == 0


def test_before_start_every_call_is_harmless():
    sampler = Sampler([FakeProbe()])
    sampler.resume()
    sampler.pause()
    sampler.stop()

    assert sampler.totals() == Totals()
    assert sampler.devices == (DEVICE,)
    assert sampler.messages() == []


def test_a_sampler_pickles_before_start_and_works_after():
    sampler = pickle.loads(pickle.dumps(Sampler([PlainProbe()], interval=3600.0)))
    sampler.start()
    sampler.resume()
    sampler.totals(PATIENCE)
    sampler.pause()
    totals = sampler.totals(PATIENCE)
    sampler.stop(PATIENCE)

    assert totals.readings == 2
    assert totals.coverage is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_child_calls_do_nothing_and_do_not_hang(started):
    clock = Clock()
    sampler = started(FakeProbe(), now=clock)
    train(sampler, clock, 10)
    sampler._wake.acquire()  # the worst moment to fork: the child's copy stays locked for ever
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: the point
        child = os.fork()
    if child == 0:  # pragma: no cover
        signal.alarm(int(PATIENCE))
        sampler.resume()
        sampler.pause()
        nothing = sampler.totals() == Totals()
        sampler.stop()
        sampler.start()
        anew = train(sampler, clock, 10).readings == 2
        os._exit(0 if nothing and anew else 1)
    sampler._wake.release()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert train(sampler, clock, 10).observed_seconds == 20


def test_a_process_that_never_stops_its_sampler_ends_quietly():
    program = (
        "from lightning_lscore.hardware import *\n"
        "d = Device(key='x', name='x', kind='cpu')\n"
        "s = Sampler([SilentProbe(d, 'why')], interval=0.001)\n"
        "s.start(); s.resume()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_a_sampler_wants_a_positive_interval(interval):
    with pytest.raises(ValueError, match="interval must be a positive number"):
        Sampler([], interval=interval)


def test_a_silent_probe_counts_time_and_says_why_it_knows_no_more(started):
    clock, probe = Clock(), SilentProbe(DEVICE, "no NVML here")
    sampler = started(probe, now=clock)

    totals = train(sampler, clock, 10)
    assert totals.training_seconds == 10
    assert totals.coverage == 0
    assert totals.busy_fraction is None
    assert sampler.reasons()["GPU-1"] == {f.name: "no NVML here" for f in fields(Reading)}


@pytest.mark.parametrize("module", ["hardware", "cpu", "nvml", "peaks"])
def test_the_hardware_modules_import_neither_torch_nor_a_vendor(module):
    program = (
        f"import sys, lightning_lscore.{module}\n"
        "print([m for m in ('torch', 'lightning', 'pynvml', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )

    assert done.stdout.strip() == "[]"
