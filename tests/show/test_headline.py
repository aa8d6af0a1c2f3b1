from __future__ import annotations

import math
from dataclasses import replace

from made_up_records import FALLING, record, run

from lightning_lscore.record.comparable import best_record
from lightning_lscore.show.headline import headline, is_plateau


def test_a_run_whose_L_still_falls_is_worth_more():
    text = headline(run([20.0, 10.0, 5.0]))
    assert (
        text
        == "300 tokens and 0.30 h of device time bought a perplexity of 5; L was still falling."
    )


def test_what_was_bought_after_the_lowest_L_is_less_than_it_was_to_buy():
    """In the shares that the records hold."""
    records = run([*FALLING, *[8.0] * 40])
    best, last = best_record(records), records[-1]
    assert best is not last
    more = f"{100 * (last.measurements.tokens / best.measurements.tokens - 1):.0f} %"
    text = headline(records)
    assert text.startswith(
        f"{more} more data and {more} more machine time after the lowest L bought "
    )
    bought = 100 * (1 - 8.0 / best.score.perplexity)
    assert f"{bought:.1f} % lower perplexity: less than it was to buy." in text


def test_a_perplexity_that_rose_bought_nothing():
    text = headline(run([20.0, 10.0, 5.0, 6.0]))
    assert text.endswith("after the lowest L bought nothing: perplexity is 20 % higher.")


def test_how_far_a_run_came_into_its_plan_is_said():
    """A run that ended early was stopped, or broke."""
    records = [replace(r, planned=40.0) for r in run([20.0, 10.0, 5.0, 6.0])]
    assert headline(records).endswith("20 % higher. It ended at 10 % of its plan.")
    assert "plan" not in headline([replace(r, planned=4.0) for r in records])


def test_a_rise_within_the_noise_is_a_plateau():
    noisy = run([10.0, 9.0, 9.5, 8.5, 9.2, 8.4, 9.1, 8.3, 9.0, 8.4])
    assert is_plateau(noisy)
    assert headline(run([10.0, 9.0, 9.5, 8.5, 9.2, 8.4, 9.1, 8.3, 9.0, 8.29])).endswith(
        "lower perplexity: about what it was to buy."
    )
    assert not is_plateau(run([*FALLING, *[8.0] * 40]))


def test_a_run_without_an_L_says_why():
    text = headline([record(1, 9.0, device_hours=None)])
    assert text == "No L was scored: device_hours: unavailable: not measured."
    assert headline([record(1, math.nan)]) == "No L was scored: every L is NaN."
