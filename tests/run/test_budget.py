"""How often a budget is looked at, and when it ends a run."""

from __future__ import annotations

import json

import pytest

from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.run.budget import Budget, Unavailable


def spend(budget, seconds, *, tokens=100, a_step=1, batches=0, steps=10**6):
    """Train until the budget ends it; how many batches and looks that took, and the hours spent."""
    looks, hours, kwh = 0, 0.0, 0.0
    for batch in range(batches, steps):
        if batch >= budget.next_look and batch % a_step == 0:
            looks += 1
            m = Measurements(tokens=batch * tokens, train_hours=hours, energy_kwh=kwh)
            if budget.look(m, batch, a_step) is not None:
                return batch, looks, hours
        hours += seconds(batch) / 3600
        kwh += seconds(batch) / 3.6e6
    return steps, looks, hours


def test_it_is_looked_at_seldom_and_holds_to_the_step():
    batch, looks, _ = spend(Budget({"tokens": 10**7 + 50}), lambda b: 0.1)
    assert batch == 10**5
    assert looks < 250


@pytest.mark.parametrize("a_step", [1, 4])
def test_it_holds_by_the_clock_though_steps_become_slower(a_step):
    """Ten times, from one look to the next; in jumps and gradually."""
    for seconds in (
        lambda b: 0.1,
        lambda b: 0.1 if b < 3000 else 1.0,
        lambda b: 0.1 * (1 + b / 1000),
        lambda b: 5.0 if b == 0 else 0.1 + 0.05 * (b % 3),
    ):
        batch, looks, hours = spend(Budget({"train_hours": 0.25}), seconds, a_step=a_step)
        assert 0.25 - 2 * a_step * 3 * seconds(batch) / 3600 < hours <= 0.25
        assert looks < 300


def test_the_first_step_ends_nothing_by_its_time():
    batch, _, _ = spend(Budget({"train_hours": 12 / 3600}), lambda b: 8.0 if b == 0 else 0.5)
    assert batch == 9


def test_of_energy_the_last_reading_may_be_old():
    hold = spend(Budget({"energy_kwh": 1e-4}, lag_hours=2 / 3600), lambda b: 0.5)
    assert hold[2] * 3600 == pytest.approx(360 - 2, abs=1.0)


def test_the_scarcest_counts():
    budget = Budget({"tokens": 10**9, "train_hours": 10 / 3600})
    assert "(train_hours)" in (budget.look(Measurements(tokens=1, train_hours=1.0), 1) or "")


def test_what_has_no_value_is_an_error_that_says_why():
    m = Measurements(tokens=1, provenance={"cost": "unavailable: no price was given"})
    with pytest.raises(Unavailable, match=r"in which cost is measured.*no price was given"):
        Budget({"cost": 1.0}).look(m, 1)


def test_what_has_no_value_yet_is_waited_for():
    """A reading of the devices may come later; not after half a minute of training."""
    budget = Budget({"energy_kwh": 1.0})
    why = {"energy_kwh": "unavailable: no reading yet"}
    assert budget.look(Measurements(train_hours=1e-3, provenance=why), 1) is None
    assert budget.next_look == 2
    with pytest.raises(Unavailable):
        budget.look(Measurements(train_hours=1.0, provenance=why), 2)


def test_a_resumed_run_knows_what_a_step_takes():
    first = Budget({"tokens": 1050})
    batch, _, _ = spend(first, lambda b: 1.0)
    again = Budget({"tokens": 1050})
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert batch == 10
    assert again.look(Measurements(tokens=1000, train_hours=0.1), 10) is not None
    assert again.look(Measurements(tokens=900, train_hours=0.1), 9) is None


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), "much", None, True])
def test_a_limit_that_is_no_amount_is_refused(limit):
    with pytest.raises(ValueError, match="budget: expected tokens > 0"):
        Budget({"tokens": limit})
