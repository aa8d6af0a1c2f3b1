from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.hardware.totals import Totals
from lightning_lscore.run.spending import Spending

# Whole numbers in floats, so that sums are exact and order does not matter.
COUNTS = st.integers(0, 2**40)


def numbers(cls, skip=()):
    return {
        f.name: COUNTS if f.type == "int" else COUNTS.map(float)
        for f in fields(cls)
        if f.name not in skip
    }


TOTALS = st.builds(Totals, **numbers(Totals))
DEVICES = st.dictionaries(st.sampled_from(["GPU-1", "GPU-2", "MIG-3"]), TOTALS)
SPENDING = st.builds(Spending, **numbers(Spending, skip=["devices"]), devices=DEVICES)

PLAIN = [f.name for f in fields(Spending) if f.name != "devices"]
OF_ENERGY = {"unrated_joules": 0.0, "emissions_kg": 0.0}
SUMMED_OVER_RANKS = {"tokens", "samples", "model_flops", *OF_ENERGY}


def flat(spending):
    values = spending.to_dict()
    seen = values.pop("devices")
    return {**values, **{(key, name): v for key, t in seen.items() for name, v in t.items()}}


@settings(max_examples=30)
@given(SPENDING, SPENDING)
def test_then_adds_everything_up(a, b):
    """What comes after is added, but for the memory's peak, of which the larger counts."""
    joined = flat(a.then(b))
    for name, value in joined.items():
        join = max if name[1] == "memory_peak_bytes" else (lambda x, y: x + y)
        assert value == join(flat(a).get(name, 0), flat(b).get(name, 0)), name


@settings(max_examples=30)
@given(SPENDING)
def test_nothing_spent_changes_nothing(a):
    """A new run is the zero of the sum."""
    assert a.then(Spending()) == Spending().then(a) == a


@settings(max_examples=30)
@given(SPENDING, SPENDING, SPENDING)
def test_sessions_may_be_joined_in_any_grouping(a, b, c):
    """A run that was resumed twice does not depend on which resume came first in the sum."""
    assert a.then(b).then(c) == a.then(b.then(c))


@settings(max_examples=30)
@given(st.lists(SPENDING, min_size=1, max_size=4))
def test_ranks_add_what_is_their_own_and_share_what_is_common(ranks):
    """Tokens and what samplers saw are summed; time, batches and capacity are the largest."""
    together = Spending.over_ranks(ranks)
    for name in PLAIN:
        values = [getattr(rank, name) for rank in ranks]
        expected = sum(values) if name in SUMMED_OVER_RANKS else max(values)
        assert getattr(together, name) == expected, name
    assert together.hardware == sum((rank.hardware for rank in ranks), Totals())
    for key in {key for rank in ranks for key in rank.devices}:
        seen = (rank.devices.get(key, Totals()) for rank in ranks)
        assert together.devices[key] == sum(seen, Totals()), key


@settings(max_examples=30)
@given(SPENDING, SPENDING, SPENDING)
def test_one_process_grows_by_exactly_what_it_spent(before, then, more):
    """With one rank, asking nobody gives what asking everybody would have given."""
    now = then.then(more)
    assert before.then(then).grown(then, now, 1) == before.then(now)


@settings(max_examples=30)
@given(SPENDING, SPENDING, SPENDING, st.integers(1, 8))
def test_ranks_that_are_alike_grow_alike(before, then, more, ranks):
    """Plain numbers are exact for ranks that did the same; the others' samplers are left out."""
    now = then.then(more)
    grown = before.then(Spending.over_ranks([then] * ranks)).grown(then, now, ranks)
    exact = before.then(Spending.over_ranks([now] * ranks))
    sampled = {"devices": {}, **OF_ENERGY}
    assert replace(grown, **sampled) == replace(exact, **sampled)
    kilograms = before.emissions_kg + ranks * then.emissions_kg + more.emissions_kg
    assert grown.emissions_kg == kilograms
    readings = before.hardware.readings + ranks * then.hardware.readings + more.hardware.readings
    assert grown.hardware.readings == readings


@settings(max_examples=30)
@given(SPENDING)
def test_growing_by_nothing_changes_nothing(spending):
    """Two looks at the same moment agree, the memory's peak included."""
    assert spending.grown(spending, spending, 4) == spending


@settings(max_examples=30)
@given(SPENDING)
def test_spending_comes_back_from_a_dictionary_of_plain_numbers(spending):
    """Through strict JSON and back, with the types that the fields have."""
    values = json.loads(json.dumps(spending.to_dict(), allow_nan=False))
    back = Spending.from_dict(values)
    assert {type(v) for v in flat(back).values()} <= {int, float}
    assert back == spending
    assert flat(back) == flat(spending)
    assert [type(v) for v in flat(back).values()] == [type(v) for v in flat(spending).values()]


@settings(max_examples=30)
@given(SPENDING, st.integers(0, 2))
def test_spending_comes_back_from_floats(spending, more):
    """Ranks exchange equally many float64 each; counts come out of it as int again."""
    keys = [*spending.devices]
    numbers = [float(n) for n in spending.numbers(slots=len(keys) + more)]
    back = Spending.from_numbers(numbers, keys)
    assert back == spending
    assert {type(v) for v in flat(back).values()} <= {int, float}
    assert [type(v) for v in flat(back).values()] == [type(v) for v in flat(spending).values()]
    assert len(numbers) == len(Spending().numbers(slots=len(keys) + more))


def test_what_a_dictionary_does_not_hold_is_zero():
    """A checkpoint of an earlier version lacks the newer counters, and one of a later has more."""
    assert Spending.from_dict({}) == Spending()
    assert Spending.from_dict({"tokens": 5, "invented": 1}) == Spending(tokens=5)


@pytest.mark.parametrize("name", PLAIN)
def test_a_new_run_has_spent_nothing(name):
    """Every counter begins at 0 with the type of its field."""
    value = getattr(Spending(), name)
    assert value == 0
    assert math.isfinite(value)


def test_time_that_was_measured_later_is_the_least_that_was_spent():
    """And its cost and capacity; counts stay, and what was not measured."""
    before = Spending(tokens=5, train_seconds=3600.0, device_seconds=7200.0, cost=4.0)
    later = Measurements(train_hours=2.0, device_hours=1.0, wall_hours=3.0, capacity_flops=9.0)
    expected = replace(
        before, train_seconds=7200.0, wall_seconds=10800.0, capacity_flops=9.0
    )  # fmt: skip
    assert before.at_least(later) == expected
    assert before.at_least(Measurements()) == before
