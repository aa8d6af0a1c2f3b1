from __future__ import annotations

import pytest

from lightning_lscore.model.epoch_shape import EpochShape
from lightning_lscore.run.plan import Plan, proves_wrong
from lightning_lscore.run.spending import Spending

SPENT = Spending(tokens=100, batches=10)


def test_the_end_is_what_was_spent_and_what_is_to_come():
    """In batches and in tokens, if batches hold what they held so far."""
    plan = Plan(to_come=30)
    assert plan.batches_in_all(SPENT) == 40
    assert plan.tokens_in_all(SPENT, None) == 400
    assert Plan().batches_in_all(SPENT) is None
    assert Plan().tokens_in_all(SPENT, None) is None
    assert plan.tokens_in_all(Spending(), None) is None
    assert plan.tokens_in_all(Spending(batches=1, uncounted_batches=1), None) is None


def test_given_tokens_come_first_for_the_horizon_and_not_for_what_the_loop_will_see():
    """The loop may be set to do something else."""
    plan = Plan(tokens=200, to_come=30)
    assert plan.batches_in_all(SPENT) == 20
    assert plan.tokens_in_all(SPENT, None) == 400


def test_batches_that_grow_make_more_of_the_rest():
    """Ten batches of one token are behind, ten of three to come, and so the next epoch."""
    shape = EpochShape(length=20, read=(1,) * 10 + (3,) * 10)
    assert Plan(to_come=10).tokens_in_all(SPENT, shape) == 400
    assert Plan(to_come=30).tokens_in_all(SPENT, shape) == 800


@pytest.mark.parametrize(("now", "wrong"), [(1099, False), (901, False), (1101, True), (10, True)])
def test_a_plan_that_is_off_by_more_than_a_tenth_is_wrong(now, wrong):
    """Both numbers are in the warning."""
    said = proves_wrong(1000.0, float(now))
    assert (said is not None) == wrong
    if said:
        assert "with 1,000 training tokens" in said
        assert f"now with {now:,}" in said


def test_the_words_say_what_is_known_and_how_and_what_overrides_it():
    """For each way to know."""
    plan = Plan(to_come=30, how="counted by max_steps=30")
    assert plan.in_words(30, is_read=False) == (
        "30 micro-batches of each process, counted by max_steps=30; their tokens by those of the "
        "batches until the first validation; planned_tokens= overrides"
    )
    assert "by those of the data read in advance" in plan.in_words(30, is_read=True)
    assert Plan().in_words(None, is_read=False) == "unknown; planned_tokens= tells"
    assert Plan(tokens=1e9).in_words(30, is_read=False) == (
        "1,000,000,000 tokens, as planned_tokens says"
    )
    assert plan.of_a_later_fit(None).endswith("; for forecasts alone, the formula was given")
    assert plan.of_a_later_fit(5000) == (
        "5,000 tokens, of the run's first fit; this one: 30 micro-batches to come, "
        "counted by max_steps=30"
    )
