"""The thread that reads the devices, under an injected clock."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass, field, fields

import pytest

from lightning_lscore.hardware.probe import Device, ProbeLost, Reading, SilentProbe
from lightning_lscore.hardware.sampler import HANG_SECONDS, RETRY_SECONDS, Sampler
from lightning_lscore.hardware.totals import Totals

PATIENCE = 20.0  # seconds that a handshake with the thread may take before a test gives up
DEVICE = Device(key="GPU-1", name="Invented GPU", kind="cuda")


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
    missing: dict[str, str] = field(default_factory=dict)

    def read(self):
        self.reads += 1
        self.entered.set()
        if self.reads >= 5:
            self.enough.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return Reading(busy_fraction=self.busy)

    def close(self):
        self.closed += 1


@dataclass
class PlainProbe:
    """A probe that pickles."""

    device: Device = DEVICE

    @property
    def missing(self):
        return {}

    def read(self):
        return Reading(busy_fraction=1.0)

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
        thread = sampler._thread
        sampler.stop(PATIENCE)
        if thread is not None:
            thread.join(PATIENCE)  # one that was late once is not waited for
        assert not any(t.name == "lscore-sampler" for t in threading.enumerate())


def totals_of(sampler, timeout=0.5):
    """Over all of its devices."""
    return sum(sampler.by_device(timeout).values(), Totals())


def catch_up(sampler):
    """Waits for the readings that were asked for."""
    with sampler._wake:
        assert sampler._wake.wait_for(lambda: sampler._served == sampler._wanted, PATIENCE)


def train(sampler, clock, seconds):
    """Training of so many seconds, with a reading at either end."""
    sampler.resume()
    totals_of(sampler, PATIENCE)
    clock.t += seconds
    sampler.pause()
    return totals_of(sampler, PATIENCE)


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


def test_a_machine_that_sleeps_shows_as_a_gap_and_its_devices_are_read_on(started):
    """The clock goes on while nobody reads: training time grows, and what is known does not."""
    clock, probe = Clock(), FakeProbe()
    sampler = started(probe, now=clock, interval=3600.0)  # four of them are a gap
    before = train(sampler, clock, 3600)
    train(sampler, clock, 8 * 3600)
    after = train(sampler, clock, 3600)

    assert before.use().coverage == 1
    assert after.training_seconds == 10 * 3600
    assert after.observed_seconds == after.busy_known_seconds == 2 * 3600
    assert after.use().busy_fraction == 1
    assert sampler.messages() == []


def test_nothing_is_read_before_training_or_while_it_is_paused(started):
    probe = FakeProbe()
    sampler = started(probe, interval=1e-4)
    assert not probe.entered.wait(0.02)  # 200 intervals
    sampler.resume()
    sampler.pause()
    totals_of(sampler, PATIENCE)
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

    assert totals_of(sampler, timeout=0.01).use().coverage == 0
    probe.gate.set()
    catch_up(sampler)
    assert totals_of(sampler).readings == 2
    assert totals_of(sampler).training_seconds == 10


def test_a_device_that_hung_once_is_not_waited_for_again(started, monkeypatch):
    """Neither by the next validation, nor at the end."""
    probe = FakeProbe(gate=threading.Event())
    sampler = started(probe)
    thread, wait_for, joined = sampler._thread, sampler._wake.wait_for, []
    sampler.resume()
    assert probe.entered.wait(PATIENCE)
    totals_of(sampler, timeout=0.01)

    def by_the_thread(*arguments):
        assert threading.current_thread() is thread
        return wait_for(*arguments)

    monkeypatch.setattr(sampler._wake, "wait_for", by_the_thread)
    monkeypatch.setattr(thread, "join", joined.append)
    for _ in range(3):
        sampler.resume()
        sampler.pause()
        assert totals_of(sampler, timeout=PATIENCE).readings == 0
    sampler.stop(timeout=PATIENCE)
    assert joined == [0.0]
    monkeypatch.undo()
    probe.gate.set()
    thread.join(PATIENCE)


def test_a_device_that_hangs_is_named_once(started):
    """When its call has lasted for ten seconds: a thread that is late by less proves nothing."""
    clock, probe = Clock(), FakeProbe(gate=threading.Event())
    sampler = started(
        probe, FakeProbe(device=Device(key="2", name="Other", kind="cuda")), now=clock
    )
    sampler.resume()
    assert probe.entered.wait(PATIENCE)
    for _ in range(2):
        totals_of(sampler, timeout=0)
        assert sampler.messages() == []
        clock.t += HANG_SECONDS / 2
    totals_of(sampler, timeout=0)
    (message,) = sampler.messages()
    assert message.startswith(
        "Invented GPU does not answer: its driver has kept a call for over 10 s"
    )
    totals_of(sampler, timeout=0)
    assert sampler.messages() == []
    probe.gate.set()
    catch_up(sampler)
    assert totals_of(sampler).readings == 2


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
    assert sampler.missing() == {"GPU-1": {}, "GPU-2": {"device": str(error) or repr(error)}}
    assert lost.closed

    each = sampler.by_device(PATIENCE)
    assert each["GPU-1"].use().coverage == 1
    assert each["GPU-2"].observed_seconds == 10
    assert each["GPU-2"].training_seconds == each["GPU-1"].training_seconds

    lost.error = None
    clock.t += RETRY_SECONDS
    train(sampler, clock, 10)
    assert sampler.by_device(PATIENCE)["GPU-2"].observed_seconds == 20
    assert sampler.missing()["GPU-2"] == {}


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

    assert totals_of(sampler, PATIENCE).training_seconds == 10


def test_stop_ends_training_time_reads_once_more_and_can_be_called_again(started):
    clock, probe = Clock(), FakeProbe()
    sampler = started(probe, now=clock)
    sampler.resume()
    totals_of(sampler, PATIENCE)
    clock.t += 10
    sampler.stop(PATIENCE)
    sampler.stop(PATIENCE)
    clock.t += 10
    sampler.resume()

    assert totals_of(sampler) == Totals(
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

    assert totals_of(sampler) == Totals()
    assert sampler.devices == (DEVICE,)
    assert sampler.messages() == []


def test_a_sampler_pickles_before_start_and_works_after():
    sampler = pickle.loads(pickle.dumps(Sampler([PlainProbe()], interval=3600.0)))
    sampler.start()
    sampler.resume()
    totals_of(sampler, PATIENCE)
    sampler.pause()
    totals = totals_of(sampler, PATIENCE)
    sampler.stop(PATIENCE)

    assert totals.readings == 2
    assert totals.use().coverage is not None


def test_in_a_spawned_process_a_sampler_begins_at_zero_and_reads():
    """It gets there by pickle, before it was started, as launchers send it."""
    probe = SilentProbe(DEVICE, "a made-up GPU")
    program = (
        "import pickle, sys\n"
        "s = pickle.load(sys.stdin.buffer)\n"
        "s.resume(); assert not s.by_device()\n"
        "s.start(); s.resume(); s.by_device(20); s.pause()\n"
        "t = s.by_device(20)['GPU-1']; s.stop(20)\n"
        "print(t.readings, t.training_seconds > 0, s.missing()['GPU-1']['busy_fraction'])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        input=pickle.dumps(Sampler([probe], interval=3600.0)),
        capture_output=True,
        timeout=120,
        check=False,
    )

    assert (done.stdout, done.stderr) == (b"2 True a made-up GPU\n", b"")


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
        nothing = totals_of(sampler) == Totals()
        sampler.stop()
        sampler.start()
        anew = train(sampler, clock, 10).readings == 2
        os._exit(0 if nothing and anew else 1)
    sampler._wake.release()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert train(sampler, clock, 10).observed_seconds == 20


def test_a_process_that_never_stops_its_sampler_ends_quietly():
    program = (
        "from lightning_lscore.hardware.probe import *\n"
        "from lightning_lscore.hardware.sampler import Sampler\n"
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
    assert totals.use().coverage == 0
    assert totals.use().busy_fraction is None
    assert sampler.missing()["GPU-1"] == {f.name: "no NVML here" for f in fields(Reading)}


@pytest.mark.parametrize(
    "module",
    [
        "probe",
        "library",
        "totals",
        "gauges",
        "energy",
        "meter",
        "sampler",
        "cpu",
        "nvml",
        "amd",
        "peaks",
    ],
)
def test_the_hardware_modules_import_neither_torch_nor_a_vendor(module):
    program = (
        f"import sys, lightning_lscore.hardware.{module}\n"
        "heavy = ('torch', 'lightning', 'pynvml', 'amdsmi', 'numpy')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )

    assert done.stdout.strip() == "[]"
