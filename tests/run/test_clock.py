from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.run.clock import Clock


class Time:
    """A clock that stands still unless told."""

    def __init__(self):
        self.seconds = 1e6

    def __call__(self):
        return self.seconds


def test_a_new_clock_stands_at_zero():
    """Nothing counts before the first resume."""
    now = Time()
    clock = Clock(now)
    now.seconds += 5
    assert clock.seconds == 0


EVENTS = st.lists(
    st.tuples(st.sampled_from(["resume", "pause", "look", "leave out"]), st.integers(0, 1000)),
    max_size=30,
)


@given(EVENTS)
def test_seconds_are_those_between_resume_and_pause(events):
    """Whatever the order and repetition of calls, exactly the time in a running state counts.

    Without what was left out of it.
    """
    now = Time()
    clock = Clock(now)
    running, expected = False, 0
    for name, elapsed in events:
        if name == "look":
            assert clock.seconds == expected
        elif name == "leave out":
            now.seconds += 7
            clock.leave_out(7)
        else:
            getattr(clock, name)()
            running = name == "resume"
        now.seconds += elapsed
        expected += elapsed * running
    assert clock.seconds == expected


def test_seconds_grow_while_the_clock_runs():
    """The time of the present stretch counts before it ends."""
    now = Time()
    clock = Clock(now)
    clock.resume()
    now.seconds += 2
    assert clock.seconds == 2
    now.seconds += 3
    assert clock.seconds == 5


def test_the_default_is_the_monotonic_clock(monkeypatch):
    """A jump of the system's wall clock changes nothing."""
    clock = Clock()
    clock.resume()
    monkeypatch.setattr(time, "time", lambda: 1e12)
    clock.pause()
    assert clock.seconds == pytest.approx(0, abs=60)
