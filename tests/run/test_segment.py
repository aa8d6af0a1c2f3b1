from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_lscore.hardware.totals import Totals
from lightning_lscore.model.flops import FlopsModel
from lightning_lscore.model.tokens import TokenCounter
from lightning_lscore.run.architecture import Architecture
from lightning_lscore.run.arithmetic import Arithmetic
from lightning_lscore.run.segment import READING_SECONDS, Segment
from lightning_lscore.run.spending import Spending


class FakeSampler:
    """Remembers what it was told, and has seen one reading for each stretch of training."""

    watts = 0.0  # each of which lasted an hour

    def __init__(self):
        self.told = []
        self.said = {}
        self.waited = []

    def __getattr__(self, name):
        if name not in ("start", "resume", "pause", "stop"):
            raise AttributeError(name)
        return lambda: self.told.append(name)

    def by_device(self, timeout):
        self.waited.append(timeout)
        readings = self.told.count("resume")
        joules = self.watts * 3600 * readings
        peak = 7 * bool(readings)
        seen = Totals(
            readings=readings,
            memory_peak_bytes=peak,
            energy_joules=joules,
            energy_known_seconds=3600.0 * readings * bool(self.watts),
        )
        return {"GPU-1": seen}

    def missing(self):
        return self.said


class Time:
    seconds = 1000.0

    def __call__(self):
        return self.seconds


def segment(*, count=2, peak=5.0, before=None, ranks=1, flops=6.0, **options):
    read_by = (("GPU-1",), ("GPU-2", "GPU-3"))[:ranks]
    devices = SimpleNamespace(count=count, peak_flops=peak, sampler=FakeSampler(), read_by=read_by)
    now = Time()
    made = Segment(
        devices,
        before=before or Spending(),
        ranks=ranks,
        arithmetic=Arithmetic(Architecture(nn.Linear(1, 1), flops)),
        now=now,
        **options,
    )
    return made, now


def batch(tokens=4, rows=2):
    return torch.zeros(rows, tokens // rows, dtype=torch.int64)


def train(made, now, seconds=10, batches=1, tokens=4):
    made.resume()
    for _ in range(batches):
        made.tokens.add(batch(tokens))
    now.seconds += seconds
    made.pause()


def test_a_segment_counts_time_tokens_and_devices_of_training_alone():
    """What passes between pause and resume costs nothing."""
    made, now = segment()
    train(made, now, 10, batches=2)
    now.seconds += 1000
    train(made, now, 5)
    assert made.spending() == Spending(
        tokens=12,
        samples=6,
        model_flops=72.0,
        batches=3,
        train_seconds=15.0,
        wall_seconds=1015.0,
        device_seconds=30.0,
        unpriced_seconds=30.0,
        capacity_flops=75.0,
        devices={"GPU-1": Totals(readings=2, memory_peak_bytes=7)},
    )


def test_a_price_makes_a_cost_of_all_devices_training_time():
    """Two devices for half an hour at 3 an hour; without a price the time counts as unpriced."""
    made, now = segment(price_per_device_hour=3.0)
    train(made, now, 1800)
    assert (made.spending().cost, made.spending().unpriced_seconds) == (3.0, 0.0)
    later, now = segment(before=made.total())
    train(later, now, 10)
    assert (later.total().cost, later.total().unpriced_seconds) == (3.0, 20.0)


def test_a_carbon_intensity_makes_emissions_of_the_energy(monkeypatch):
    """Without one the energy counts as unrated."""
    monkeypatch.setattr(FakeSampler, "watts", 500.0)
    made, now = segment(carbon_intensity=400.0)
    train(made, now)
    assert (made.spending().emissions_kg, made.spending().unrated_joules) == (0.2, 0.0)
    later, now = segment(before=made.total())
    train(later, now)
    assert (later.total().emissions_kg, later.total().unrated_joules) == (0.2, 1.8e6)


def test_wall_time_goes_on_while_validating_and_ends_with_the_session():
    """From the first step to the end of the fit."""
    made, now = segment()
    train(made, now, 10)
    now.seconds += 100
    made.stop()
    now.seconds += 100
    assert (made.spending().train_seconds, made.spending().wall_seconds) == (10, 110)


def test_the_sampler_is_told_of_every_edge():
    """It starts with the session, stands still with it, and ends with it."""
    made, now = segment()
    train(made, now)
    made.resume()
    made.stop()
    told = made.devices.sampler.told
    assert told == ["start", "resume", "pause", "resume", "stop"]


def test_what_was_counted_stays_after_the_end():
    """The callback asks for the total after stop; time stands still by then."""
    made, now = segment()
    made.resume()
    now.seconds += 3
    made.stop()
    now.seconds += 100
    assert made.spending().train_seconds == 3
    assert made.total() == made.spending()


def test_time_counts_while_training_goes_on():
    """A checkpoint in the middle of training holds the time until then."""
    made, now = segment()
    made.resume()
    now.seconds += 4
    assert made.total().train_seconds == 4


def test_without_a_known_peak_there_is_no_capacity():
    """It adds nothing rather than something made up."""
    made, now = segment(peak=None)
    train(made, now)
    assert made.spending().capacity_flops == 0.0
    assert made.spending().device_seconds == 20.0


def test_batches_without_tokens_are_remembered():
    """The run's tokens are unknown then."""
    made, _ = segment()
    made.tokens.add(None)
    assert (made.spending().batches, made.spending().uncounted_batches) == (1, 1)


def test_a_function_counts_tokens():
    """It is passed on to the counter."""
    made, _ = segment(tokens=TokenCounter(lambda b: 11))
    made.tokens.add(None)
    assert (made.spending().tokens, made.spending().model_flops) == (11, 66.0)


def test_one_process_needs_nobody_else_to_know_the_total():
    """Asked or not, before, between and after validations, the total is the same."""
    before = Spending(tokens=100, train_seconds=50.0, devices={"GPU-0": Totals(readings=5)})
    made, now = segment(before=before)
    assert made.total().hardware == before.hardware
    for _ in range(3):
        train(made, now)
        expected = before.then(made.spending())
        assert made.total() == expected
        assert made.settle(made.spending(), [made.numbers(made.spending())]) == expected
        assert made.total() == expected
    train(made, now)
    assert made.total() == before.then(made.spending())


def test_ranks_are_joined_and_then_taken_to_be_alike():
    """A settled total is exact; what comes after multiplies this rank's tokens, not its time."""
    before = Spending(tokens=1000, train_seconds=7.0)
    made, now = segment(before=before, ranks=2)
    train(made, now, 10)
    mine = made.spending()
    other = Spending(tokens=6, samples=1, batches=1, train_seconds=12.0, device_seconds=24.0)
    keys = made.devices.read_by[1]
    seen = {keys[0]: Totals(), keys[1]: Totals(readings=9)}
    theirs = replace(other, devices=seen).numbers(slots=2)
    settled = made.settle(mine, [made.numbers(mine), theirs])
    assert (settled.tokens, settled.train_seconds, settled.batches) == (1010, 19.0, 1)
    assert {key: seen.readings for key, seen in settled.devices.items()} == {
        "GPU-1": 1, "GPU-2": 0, "GPU-3": 9,
    }  # fmt: skip
    train(made, now, 10)
    total = made.total()
    assert (total.tokens, total.train_seconds, total.batches) == (1018, 29.0, 2)
    assert total.device_seconds == 24.0 + 20.0


def test_a_batch_that_two_processes_compute_together_counts_once():
    """What the second one saw of its device counts all the same."""
    first, now = segment(ranks=2)
    second, then = segment(ranks=2, counts=False)
    train(first, now)
    train(second, then)
    keys = second.devices.read_by[1]
    theirs = second.spending()
    assert theirs.tokens == 4
    theirs = replace(theirs, devices={keys[0]: theirs.devices["GPU-1"]})
    numbers = [first.numbers(first.spending()), second.numbers(theirs)]
    total = first.settle(first.spending(), numbers)
    assert (total.tokens, total.samples, total.model_flops) == (4, 2, 24.0)
    assert total.hardware.readings == 2


def test_reasons_of_all_devices_are_joined():
    """By the field of a reading, whatever the device."""
    made, _ = segment()
    made.devices.sampler.said = {"GPU-1": {"busy": "no"}, "GPU-2": {"energy_joules": "none"}}
    assert made.missing() == {"busy": "no", "energy_joules": "none"}


@pytest.mark.parametrize("initialized", [False, True])
def test_queued_steps_are_awaited_before_the_clock_stops(monkeypatch, initialized):
    """CUDA is synchronised at a pause, and never started for that."""
    made, now = segment()

    def synchronize():
        now.seconds += 2

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    train(made, now, 10)
    assert made.spending().train_seconds == (12 if initialized else 10)


def test_model_flops_grow_with_the_length_of_the_sequences():
    """6 a token, and 1 for each position that it looks at; another number counts for all tokens."""
    made, now = segment()
    made.arithmetic.flops = FlopsModel(per_token=6.0, per_position={math.inf: 1.0}, convention="")
    train(made, now, tokens=4)
    train(made, now, tokens=8)
    assert made.spending().model_flops == 4 * (6 + 2) + 8 * (6 + 4)
    made.arithmetic.flops = FlopsModel.given(3)
    assert made.spending().model_flops == 36


def test_what_lscore_itself_takes_costs_nothing():
    """Neither counting a batch nor what a checkpoint asks for; training in between counts."""
    made, now = segment()
    add = made.tokens.add

    def slowly(batch):
        now.seconds += 3
        add(batch)

    made.tokens.add = slowly
    made.resume()
    for _ in range(2):
        made.count(batch())
        now.seconds += 10
    with made.uncharged():
        now.seconds += 5
    made.count(batch())
    assert made.spending().train_seconds == 20
    assert made.spending().wall_seconds == 20 + 3 * 3 + 5
    made.pause()
    made.count(batch())  # while time stands still there is nothing to take back
    assert made.spending().train_seconds == 20


def test_a_function_that_may_wait_for_the_device_is_charged():
    """The device computes queued steps in the meantime."""
    count = TokenCounter(lambda n: setattr(now, "seconds", now.seconds + 3) or n)
    made, now = segment(tokens=count)
    made.resume()
    made.count(4)
    assert made.spending().train_seconds == 3


def test_only_a_validation_waits_for_a_reading():
    """A checkpoint takes the readings that are there."""
    made, now = segment()
    train(made, now)
    made.total()
    made.spending()
    assert made.devices.sampler.waited == [0.0, READING_SECONDS]
