"""The shipped rule on recorded runs."""

from __future__ import annotations

import math

import pytest

from lightning_lscore.curve.patience import Patience
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.learning_rate import LearningRate
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.record import Record
from lightning_lscore.show.replay import hindsight, replay

FORMULA = Formula(D=Factor("tokens", 1e4, 0.02), H=Factor("device_hours", 1.0, 0.0))


def run_of(losses, rates=None, formula=FORMULA, steps=100):
    """A run that validates every 100 steps of its plan."""
    records = []
    for i, loss in enumerate(losses, 1):
        m = Measurements(nll=loss, tokens=i * steps, device_hours=i / 10)
        rate = LearningRate.before(rates[i - 1], rates[i:]) if rates else LearningRate()
        records.append(
            Record(
                run="a",
                batch=i * steps,
                step=i * steps,
                epoch=0,
                time="",
                measurements=m,
                score=formula.score(m),
                formula=formula.to_dict(),
                planned=float(steps * len(losses)),
                learning_rate=rate,
            )
        )
    return records


OVERFITTING = [3.4, 3.2, 3.1, 3.05, 3.03, 3.02, *[3.08 + 0.01 * i for i in range(14)]]


def test_it_says_where_why_and_what_that_would_have_saved():
    found = replay(run_of(OVERFITTING), Patience())
    assert (found.at.step, found.cause) == (900, "held-out loss rising beyond noise")
    assert found.saved == pytest.approx(1 - 9 / 20)
    assert hindsight(run_of(OVERFITTING), Patience()) == (
        "CostEarlyStopping would have stopped at step 900 (held-out loss rising beyond noise): "
        "55 % of the spending saved, the best perplexity kept."
    )


def test_it_says_what_stopping_would_have_cost_in_perplexity():
    slowly = [3.0, *[3.0 - 1e-5 * i for i in range(1, 40)]]
    dear = Formula(D=Factor("tokens", 1e3, 0.5))
    text = hindsight(run_of(slowly, formula=dear), Patience())
    cost = math.exp(slowly[2] - slowly[-1]) - 1
    assert "of the spending saved, the best perplexity 20." in text
    assert text.endswith(f"{100 * cost:.2f} % higher.")


def test_a_run_that_pays_is_not_stopped():
    falling = [3.5 - 0.05 * i for i in range(20)]
    assert replay(run_of(falling), Patience()) is None
    assert hindsight(run_of(falling), Patience()).endswith("would not have stopped this run.")


def test_the_learning_rate_of_the_record_decides():
    plateau = [3.0] * 12
    dear = Formula(D=Factor("tokens", 1e3, 0.5))
    held = [1.0] * 11 + [0.1]
    assert replay(run_of(plateau, held, dear), Patience()).at.step == 1200
    assert replay(run_of(plateau, [1.0] * 12, dear), Patience()).at.step == 300
    assert replay(run_of(plateau, held, dear), Patience(while_decaying=True)).at.step == 300
    assert replay(run_of(plateau, None, dear), Patience(ratio=2.5)).at.step == 400


def test_the_rule_is_told_what_the_callback_is_told():
    """The outlook too, which needs the plan of the record."""
    flat = [3.5, 3.2, *[3.0] * 28]
    cheap = Formula(D=Factor("tokens", 3e3, 0.004))
    found = replay(run_of(flat, formula=cheap), Patience())
    assert found.cause == "the rest of the plan cannot pay"
    assert found.at.step > 1500


def test_validations_that_do_not_compare_are_left_out():
    other = Formula(D=Factor("tokens", 1.0, 0.9))
    records = [*run_of([9.0, 9.1, 9.2, 9.3, 9.4], formula=other), *run_of(OVERFITTING)[5:]]
    assert replay(records, Patience()).at.step == 900


def test_a_stop_at_the_last_validation_saves_nothing():
    text = hindsight(run_of(OVERFITTING)[:9], Patience())
    assert text.endswith("(held-out loss rising beyond noise), at the end of what is recorded.")


def test_a_run_without_a_perplexity_is_passed_over():
    m = Measurements(tokens=5)
    record = Record(
        run="a", batch=1, step=1, epoch=0, time="", measurements=m,
        score=FORMULA.score(m), formula=FORMULA.to_dict(),
    )  # fmt: skip
    assert replay([record], Patience()) is None
