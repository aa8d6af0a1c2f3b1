from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.learning_rate import LearningRate
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.run.progress import CURVE_POINTS, Progress
from lightning_lscore.run.spending import Spending
from lightning_lscore.run.state import RunState


class Run:
    """A formula, and the validations of a run under it."""

    def __init__(self, formula, progress=None):
        self.formula, self.progress = formula, progress or Progress()
        self.batches, self.decay = 0, "over"

    def take_in(self, measured):
        return self.progress.take_in(self.formula, measured, self.batches)

    def forecast(self, measured, planned):
        measured = self.take_in(measured)
        self.progress.see_rate(LearningRate(now=1.0, decay=self.decay), self.batches)
        return self.progress.forecast(self.formula, measured, planned)

    def saved(self):
        return RunState(formula=self.formula, progress=self.progress).to_dict(Spending())

    @classmethod
    def resumed(cls, saved, given=None):
        state = RunState.from_dict(saved, given)
        return cls(state.formula, state.progress)


# ---------------------------------------------------------------- the elasticity

H_AND_D = Formula(D=Factor("tokens", 1e3), H=Factor("capacity_flops", 1e9))


def point(nll, tokens, flops=None):
    return Measurements(nll=nll, tokens=tokens, capacity_flops=flops)


def test_the_elasticity_is_negative_where_spending_helped():
    """d ln T / d ln spent, in the measure of H."""
    run = Run(formula=H_AND_D)
    first = run.take_in(point(3.0, 100, 1e9))
    assert first.elasticity is None
    assert first.provenance["elasticity"].startswith("unavailable: it takes two validations")
    second = run.take_in(point(2.9, 150, 2e9))
    assert second.elasticity == pytest.approx(-0.1 / math.log(2))
    assert second.provenance["elasticity"].endswith("spending in capacity_flops")
    third = run.take_in(point(3.0, 200, 4e9))
    assert third.elasticity == pytest.approx(0.1 / math.log(2))


@pytest.mark.parametrize(
    "formula",
    [Formula(D=Factor("tokens", 1.0)), Formula(), Formula(H=lambda m: 1.0)],
    ids=["D", "none", "a function"],
)
def test_the_elasticity_is_in_tokens_where_H_has_no_measure(formula):
    """The measure of D, or tokens if that has none either."""
    run = Run(formula=formula)
    run.take_in(point(3.0, 100))
    assert run.take_in(point(2.0, 200)).elasticity == pytest.approx(-1 / math.log(2))


def test_the_elasticity_falls_back_on_D_where_H_was_not_measured():
    """A device without a known peak leaves the tokens to compare by."""
    run = Run(formula=H_AND_D)
    run.take_in(point(3.0, 100))
    assert run.take_in(point(2.0, 200)).elasticity == pytest.approx(-1 / math.log(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_elasticity_is_absent_next_to_a_perplexity_that_is_no_number(bad):
    """Neither that validation nor the one after it has a slope; the third has one again."""
    run = Run(formula=H_AND_D)
    points = [(3.0, 1e9), (bad, 2e9), (2.9, 3e9), (2.8, 4e9)]
    slopes = [run.take_in(point(nll, 1, flops)).elasticity for nll, flops in points]
    assert [s is None for s in slopes] == [True, True, True, False]


@pytest.mark.parametrize("flops", [1e9, 5e8, 0.0, None])
def test_the_elasticity_is_absent_where_nothing_more_was_spent(flops):
    """Two validations at one moment have no slope, and no exception."""
    run = Run(formula=Formula(H=Factor("capacity_flops", 1e9)))
    run.take_in(point(3.0, 100, 1e9))
    assert run.take_in(point(2.9, 100, flops)).elasticity is None


# ---------------------------------------------------------------- a level of perplexity

TO_20 = Formula(D=Factor("tokens_to_level", 1000, level=20.0))


def levels(run, *points):
    """tokens_to_level after each validation of (perplexity, tokens)."""
    found = [
        run.take_in(Measurements(perplexity=T, tokens=n, device_hours=n / 100, steps=1))
        for T, n in points
    ]
    return [m.get("tokens_to_level") for m in found], found[-1]


def test_the_spending_to_a_level_is_where_the_line_between_two_validations_meets_it():
    """Interpolated in ln T, and fixed from then on, whatever T does later."""
    share = math.log(40 / 20) / math.log(40 / 10)
    found, last = levels(Run(formula=TO_20), (40, 100), (10, 300), (30, 400), (5, 500))
    assert found == [None, *[pytest.approx(100 + share * 200)] * 3]
    assert last.get("device_hours_to_level") == pytest.approx(found[-1] / 100)
    assert last.level == 20
    assert last.provenance["tokens_to_level"].startswith("measured: perplexity 20 reached")


def test_before_its_level_a_run_has_no_L_and_says_so():
    """Not reached yet is absent, not 0 and not infinite."""
    found, last = levels(Run(formula=TO_20), (40, 100), (30, 300))
    assert found == [None, None]
    score = TO_20.score(last)
    assert score.L is None
    assert score.missing == ("tokens_to_level: unavailable: a perplexity of 20 is not reached yet",)


@pytest.mark.parametrize("points", [[(20.0, 100)], [(math.nan, 50), (15.0, 100)]])
def test_a_level_reached_before_the_first_number_is_an_upper_bound(points):
    """Where nothing lies before, the line cannot be drawn."""
    found, last = levels(Run(formula=TO_20), *points)
    assert found[-1] == 100
    assert last.provenance["tokens_to_level"].startswith("estimated: at most")


def test_a_level_survives_a_checkpoint_unless_the_formula_changes():
    """Another formula may ask for another level, and begins anew."""
    run = Run(formula=TO_20)
    levels(run, (40, 100), (10, 300))
    state = run.saved()
    (kept,), m = levels(Run.resumed(state), (10, 400))
    assert 100 < kept < 300
    assert m.provenance["tokens_to_level"].startswith("measured")
    to_15 = Formula(D=Factor("tokens_to_level", 1000, level=15.0))
    assert levels(Run.resumed(state, to_15), (10, 400))[0] == [400]


def test_without_a_level_nothing_waits_for_one():
    """The measures are absent."""
    assert levels(Run(formula=Formula()), (40, 100), (1, 200))[0] == [None, None]


def test_the_level_and_the_elasticity_are_those_of_the_formulas_T():
    """A nominal token of 4 bytes instead of the tokenizer's."""
    formula = Formula(
        T="nominal_perplexity", D=Factor("tokens_to_level", 1000, level=math.exp(2.5))
    )
    run = Run(formula=formula)
    for nats, tokens in ((3.0, 100), (2.0, 200)):
        bits = nats / 4 / math.log(2)
        m = run.take_in(Measurements(nll=9.0, bits_per_byte=bits, tokens=tokens))
    assert m.get("tokens_to_level") == pytest.approx(150)
    assert m.elasticity == pytest.approx(-1 / math.log(2))


# ---------------------------------------------------------------- the best L to come


def validated(run, n, batches=10, planned=None, noise=0.0):
    """The prediction after n validations of a loss that falls as a power of what is spent."""
    for i in range(1, n + 1):
        run.batches = batches * i
        nll = 2 + i**-0.5 + noise * (-1) ** i
        found = run.forecast(Measurements(nll=nll, tokens=batches * i), planned)
    return found


def test_a_run_predicts_the_best_L_of_its_plan():
    """Twice as far as it is, by the price of its own formula."""
    formula = Formula(D=Factor("tokens", 400, 0.05))
    found = validated(Run(formula=formula), 40, planned=800.0)
    end = Measurements(nll=2 + 80**-0.5, tokens=800)
    assert found.best_L_low < formula.score(end).L < found.best_L_high
    assert found.horizon == pytest.approx(2)
    assert 1.5 < found.growth <= 2, "L is all but flat there"


def test_a_run_predicts_nothing_without_an_L_or_a_curve():
    """A sentence instead."""
    assert "6 spendings, got 3" in validated(Run(formula=Formula()), 3).reason
    lacking = Run(formula=Formula(H=Factor("energy_kwh", 1.0)))
    assert validated(lacking, 3).reason == "There is no L."
    run = Run(formula=Formula())
    assert "finite" in run.forecast(Measurements(nll=math.nan), None).reason


def test_a_rate_that_changed_its_way_is_carried_on_once_the_stretch_lies_behind():
    """Also after a resume."""
    run = Run(formula=Formula(D=Factor("tokens", 400, 0.05)))
    validated(run, 30)
    run = Run.resumed(json.loads(json.dumps(run.saved())))
    run.decay, shown = "under way", []
    for i in range(31, 61):
        run.batches = 10 * i
        found = run.forecast(Measurements(nll=2 + i**-0.5, tokens=10 * i), 700.0)
        shown.append("too short a time" not in getattr(found, "reason", ""))
    assert shown.index(True) == pytest.approx(31 * 2**0.5 - 31, abs=2)
    assert all(shown[shown.index(True) :])


def test_a_prediction_is_the_same_after_a_resume():
    """The curve is in the checkpoint."""
    formula = Formula(D=Factor("tokens", 400, 0.05))
    whole, first = Run(formula=formula), Run(formula=formula)
    expected = validated(whole, 41, planned=800.0, noise=1e-4)
    validated(first, 40, planned=800.0, noise=1e-4)
    resumed = Run.resumed(json.loads(json.dumps(first.saved())))
    resumed.batches = 410
    last = Measurements(nll=2 + 41**-0.5 - 1e-4, tokens=410)
    assert resumed.forecast(last, 800.0) == expected


def test_a_curve_in_a_checkpoint_stays_short_and_forgets_nothing(monkeypatch):
    """Its points become means, and the prediction stays."""
    run, whole = (Run(formula=Formula(D=Factor("tokens", 400, 0.05))) for _ in "ab")
    expected = validated(whole, 200, planned=4000.0, noise=0.003)
    assert len(whole.progress.curve) == 200 <= CURVE_POINTS
    monkeypatch.setattr("lightning_lscore.run.progress.CURVE_POINTS", 128)
    found = validated(run, 200, planned=4000.0, noise=0.003)
    assert len(run.progress.curve) == 128
    assert sum(count for _, _, count in run.progress.curve) == 200
    assert asdict(found) == pytest.approx(asdict(expected), rel=5e-3)


def test_a_perplexity_that_is_no_number_leaves_the_curve_as_it_is():
    """A diverged validation counts as spending, until the next one."""
    runs = Run(formula=Formula()), Run(formula=Formula())
    for run in runs:
        validated(run, 40)
    runs[0].forecast(Measurements(nll=math.nan, tokens=400), 800.0)
    assert runs[0].progress.curve[:-1] == runs[1].progress.curve
    last = Measurements(nll=2 + 41**-0.5, tokens=410)
    assert runs[0].forecast(last, 800.0) == runs[1].forecast(last, 800.0)
