from __future__ import annotations

import io
import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.equation.formula import Factor, Formula, compute_optimal_tokens
from lightning_lscore.equation.measurements import MEASURES, Measurements
from lightning_lscore.hardware.meter import Totals
from lightning_lscore.heldout.evaluation import Evaluation
from lightning_lscore.model.parameters import ParameterCount
from lightning_lscore.record.records import Record
from lightning_lscore.run.run import CURVE_POINTS, Run, measure
from lightning_lscore.run.spending import Spending

PARAMETERS = ParameterCount(trainable=600, total=1000)
DEVICE = {"key": "GPU-1", "name": "Invented", "peak_flops": 1e6, "peak_source": "invented"}
EVALUATION = Evaluation((30.0, 50.0), (10, 30), "the output's logits")
SPENT = Spending(
    tokens=8000,
    samples=80,
    model_flops=8000.0 * 5200,
    batches=20,
    train_seconds=3600.0,
    wall_seconds=5400.0,
    device_seconds=7200.0,
    cost=5.0,
    capacity_flops=7200e6,
    emissions_kg=0.04,
    devices={
        "GPU-1": Totals(
            training_seconds=7200.0,
            observed_seconds=3600.0,
            busy_seconds=1800.0,
            busy_known_seconds=3600.0,
            energy_joules=360_000.0,
            energy_known_seconds=3600.0,
            memory_peak_bytes=3 * 2**30,
            memory_byte_seconds=2 * 2**30 * 3600.0,
            memory_known_seconds=3600.0,
            readings=10,
        )
    },
)


def measured(evaluation=EVALUATION, spent=SPENT, **changes):
    options = {"steps": 10, "epochs": 0.5, "devices": [DEVICE, DEVICE], "reasons": {}}
    options["flops"] = "6 FLOP per parameter"
    return measure(evaluation, spent, PARAMETERS, **{**options, **changes})


# ---------------------------------------------------------------- measurements


def test_measurements_follow_from_what_was_spent():
    """Each value by hand, in the unit of its name."""
    expected = {
        "perplexity": math.exp(2),
        "nll": 2.0,
        "validation_tokens": 40,
        "tokens": 8000,
        "samples": 80,
        "steps": 10,
        "epochs": 0.5,
        "model_flops": 8000 * (6 * 600 + 4 * 400),
        "trainable_parameters": 600,
        "total_parameters": 1000,
        "flops_per_token": 5200,
        "train_hours": 1,
        "wall_hours": 1.5,
        "device_hours": 2,
        "cost": 5,
        "capacity_flops": 7.2e9,
        "tokens_per_second": 8000 / 3600,
        "mfu": 8000 * 5200 / 7.2e9,
        "busy_fraction": 0.5,
        "memory_mean_gib": 2,
        "memory_peak_gib": 3,
        "power_watts": 200,
        "energy_kwh": 0.1,
        "emissions_kg": 0.04,
    }
    found = measured().measured()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


NOTHING = Spending()
CASES = {
    "everything": {},
    "nothing spent": {"spent": NOTHING},
    "uncounted batches": {"spent": Spending(batches=2, uncounted_batches=1, train_seconds=1.0)},
    "no sampler": {"spent": Spending(tokens=5, train_seconds=1.0, device_seconds=1.0)},
    "no length": {"epochs": None},
    "no tokens": {"evaluation": Evaluation((0.0,), (0,), "logits")},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_measure_says_where_it_came_from_or_why_it_is_missing(case):
    """Measured, estimated or unavailable, each with words, for every measure there is."""
    case = {"spent": SPENT, **case}
    run = Run(formula=Formula())
    if case["spent"].device_seconds == 0:
        case["spent"] = Spending(
            **{f: getattr(case["spent"], f) for f in ("tokens", "batches", "uncounted_batches")}
        )
    m = run.with_history(measured(**case))
    names = {name for name in MEASURES if not name.endswith("_to_level")}
    assert m.provenance.keys() == names
    for name in names:
        how, _, words = m.provenance[name].partition(": ")
        available = {"measured", "estimated"}
        assert (how in available) if m.get(name) is not None else (how == "unavailable"), name
        assert len(words) > 5, name


def test_what_is_not_known_is_absent_and_never_zero():
    """A run without device readings, peaks or tokens has no numbers for them."""
    spent = Spending(batches=4, uncounted_batches=4, train_seconds=10.0, device_seconds=10.0)
    device = {**DEVICE, "peak_flops": None, "peak_source": "unavailable: unknown device"}
    m = measured(spent=spent, epochs=None, devices=[device])
    absent = ["tokens", "samples", "epochs", "model_flops", "capacity_flops", "tokens_per_second"]
    absent += ["mfu", "busy_fraction", "memory_peak_gib", "power_watts", "energy_kwh"]
    absent += ["bits_per_byte", "flops_per_token"]
    assert {name: m.get(name) for name in absent} == dict.fromkeys(absent)
    assert "count_tokens" in m.provenance["tokens"]
    assert "unknown device" in m.provenance["capacity_flops"]
    assert m.train_hours == pytest.approx(10 / 3600)


def test_reasons_of_the_sampler_reach_the_provenance():
    """Whoever lacks energy reads what the driver said."""
    spent = Spending(tokens=5, train_seconds=1.0, device_seconds=1.0)
    reasons = {
        "busy": "no NVML",
        "energy_joules": "no counter",
        "power_watts": "no sensor",
        "memory_used_bytes": "no memory",
    }
    provenance = measured(spent=spent, reasons=reasons).provenance
    assert provenance["busy_fraction"] == "unavailable: no NVML"
    assert provenance["energy_kwh"] == "unavailable: no counter"
    assert provenance["power_watts"] == "unavailable: no counter", "it is the energy's mean"
    assert provenance["memory_peak_gib"] == "unavailable: no memory"


@pytest.mark.parametrize(
    ("estimated", "how"), [(0.0, "measured: energy counter"), (1.0, "estimated: from power")]
)
def test_energy_from_integrated_power_is_called_estimated(estimated, how):
    """Only a counter measures energy; either way the coverage is stated."""
    totals = Totals(
        energy_joules=10.0,
        energy_estimated_joules=estimated,
        energy_known_seconds=1.0,
        observed_seconds=3.0,
    )
    m = measured(spent=Spending(train_seconds=4.0, device_seconds=4.0, devices={"GPU-1": totals}))
    assert m.provenance["energy_kwh"].startswith(how)
    assert "25%" in m.provenance["energy_kwh"]


def test_an_idle_device_is_measured_as_zero_busy():
    """0 from readings is a measurement."""
    totals = Totals(observed_seconds=4.0, busy_known_seconds=4.0)
    m = measured(spent=Spending(train_seconds=4.0, device_seconds=4.0, devices={"GPU-1": totals}))
    assert m.busy_fraction == 0.0


# ---------------------------------------------------------------- the formula


def test_the_formula_is_made_from_the_runs_own_plan():
    """Planned batches times the tokens a batch of all ranks, counted so far."""
    run = Run(spent=SPENT, planned_batches=200.0)
    formula = run.settle_formula(PARAMETERS)
    assert formula == Formula.for_plan(parameters=1000, tokens=80_000)
    assert run.formula is formula


def test_a_formula_once_settled_stays():
    """What was spent since, or another plan, changes nothing."""
    run = Run(spent=SPENT, planned_batches=200.0)
    formula = run.settle_formula(PARAMETERS)
    run.spent, run.planned_batches = SPENT.then(SPENT), 7.0
    assert run.settle_formula(PARAMETERS) is formula
    given_ = Formula(D=0.5)
    assert Run(formula=given_, planned_batches=3.0).settle_formula(PARAMETERS) is given_


def test_without_a_plan_the_formula_is_compute_optimal():
    """A run without a finite end is charged against the law."""
    formula = Run(spent=SPENT).settle_formula(PARAMETERS)
    assert formula.D.reference == compute_optimal_tokens(1000)


def test_a_validation_before_the_first_batch_settles_a_formula():
    """A run may go on from a checkpoint that LScore was not part of, validation first."""
    formula = Run(planned_batches=200.0).settle_formula(PARAMETERS)
    assert formula.score(Measurements(perplexity=3.0, tokens=0)).perplexity == 3.0


# ---------------------------------------------------------------- the elasticity

H_AND_D = Formula(D=Factor("tokens", 1e3), H=Factor("capacity_flops", 1e9))


def point(nll, tokens, flops=None):
    return Measurements(nll=nll, tokens=tokens, capacity_flops=flops)


def test_the_elasticity_is_negative_where_spending_helped():
    """d ln T / d ln spent, in the measure of H."""
    run = Run(formula=H_AND_D)
    first = run.with_history(point(3.0, 100, 1e9))
    assert first.elasticity is None
    assert first.provenance["elasticity"].startswith("unavailable: it takes two validations")
    second = run.with_history(point(2.9, 150, 2e9))
    assert second.elasticity == pytest.approx(-0.1 / math.log(2))
    assert second.provenance["elasticity"].endswith("spending in capacity_flops")
    third = run.with_history(point(3.0, 200, 4e9))
    assert third.elasticity == pytest.approx(0.1 / math.log(2))


@pytest.mark.parametrize(
    "formula",
    [Formula(D=Factor("tokens", 1.0)), Formula(), Formula(H=lambda m: 1.0)],
    ids=["D", "none", "a function"],
)
def test_the_elasticity_is_in_tokens_where_H_has_no_measure(formula):
    """The measure of D, or tokens if that has none either."""
    run = Run(formula=formula)
    run.with_history(point(3.0, 100))
    assert run.with_history(point(2.0, 200)).elasticity == pytest.approx(-1 / math.log(2))


def test_the_elasticity_falls_back_on_D_where_H_was_not_measured():
    """A device without a known peak leaves the tokens to compare by."""
    run = Run(formula=H_AND_D)
    run.with_history(point(3.0, 100))
    assert run.with_history(point(2.0, 200)).elasticity == pytest.approx(-1 / math.log(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_elasticity_is_absent_next_to_a_perplexity_that_is_no_number(bad):
    """Neither that validation nor the one after it has a slope; the third has one again."""
    run = Run(formula=H_AND_D)
    points = [(3.0, 1e9), (bad, 2e9), (2.9, 3e9), (2.8, 4e9)]
    slopes = [run.with_history(point(nll, 1, flops)).elasticity for nll, flops in points]
    assert [s is None for s in slopes] == [True, True, True, False]


@pytest.mark.parametrize("flops", [1e9, 5e8, 0.0, None])
def test_the_elasticity_is_absent_where_nothing_more_was_spent(flops):
    """Two validations at one moment have no slope, and no exception."""
    run = Run(formula=Formula(H=Factor("capacity_flops", 1e9)))
    run.with_history(point(3.0, 100, 1e9))
    assert run.with_history(point(2.9, 100, flops)).elasticity is None


# ---------------------------------------------------------------- a level of perplexity

TO_20 = Formula(D=Factor("tokens_to_level", 1000, level=20.0))


def levels(run, *points):
    """tokens_to_level after each validation of (perplexity, tokens)."""
    found = [
        run.with_history(Measurements(perplexity=T, tokens=n, device_hours=n / 100, steps=1))
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
    state = run.to_dict(Spending())
    (kept,), m = levels(Run.from_dict(state, None), (10, 400))
    assert 100 < kept < 300
    assert m.provenance["tokens_to_level"].startswith("measured")
    to_15 = Formula(D=Factor("tokens_to_level", 1000, level=15.0))
    assert levels(Run.from_dict(state, to_15), (10, 400))[0] == [400]


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
        m = run.with_history(Measurements(nll=9.0, bits_per_byte=bits, tokens=tokens))
    assert m.get("tokens_to_level") == pytest.approx(150)
    assert m.elasticity == pytest.approx(-1 / math.log(2))


# ---------------------------------------------------------------- the best L to come


def validated(run, n, batches=10, planned=None, noise=0.0):
    """The prediction after n validations of a loss that falls as a power of what is spent."""
    for i in range(1, n + 1):
        run.spent = Spending(batches=batches * i, tokens=batches * i)
        nll = 2 + i**-0.5 + noise * (-1) ** i
        found = run.predict(Measurements(nll=nll, tokens=batches * i), planned)
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
    run = Run(formula=Formula(), spent=Spending(batches=1))
    assert "finite" in run.predict(Measurements(nll=math.nan), None).reason


def test_a_prediction_is_the_same_after_a_resume():
    """The curve is in the checkpoint."""
    formula = Formula(D=Factor("tokens", 400, 0.05))
    whole, first = Run(formula=formula), Run(formula=formula)
    expected = validated(whole, 41, planned=800.0, noise=1e-4)
    validated(first, 40, planned=800.0, noise=1e-4)
    resumed = Run.from_dict(json.loads(json.dumps(first.to_dict(first.spent))), None)
    resumed.spent = Spending(batches=410, tokens=410)
    last = Measurements(nll=2 + 41**-0.5 - 1e-4, tokens=410)
    assert resumed.predict(last, 800.0) == expected


def test_a_curve_in_a_checkpoint_stays_short_and_forgets_nothing(monkeypatch):
    """Its points become means, and the prediction stays."""
    run, whole = (Run(formula=Formula(D=Factor("tokens", 400, 0.05))) for _ in "ab")
    expected = validated(whole, 200, planned=4000.0, noise=0.003)
    assert len(whole.curve) == 200 <= CURVE_POINTS
    monkeypatch.setattr("lightning_lscore.run.run.CURVE_POINTS", 128)
    found = validated(run, 200, planned=4000.0, noise=0.003)
    assert len(run.curve) == 128
    assert sum(count for _, _, count in run.curve) == 200
    assert asdict(found) == pytest.approx(asdict(expected), rel=5e-3)


def test_a_perplexity_that_is_no_number_leaves_the_curve_as_it_is():
    """A diverged validation counts as spending, until the next one."""
    runs = Run(formula=Formula()), Run(formula=Formula())
    for run in runs:
        validated(run, 40)
    runs[0].predict(Measurements(nll=math.nan, tokens=400), 800.0)
    assert runs[0].curve[:-1] == runs[1].curve
    last = Measurements(nll=2 + 41**-0.5, tokens=410)
    assert runs[0].predict(last, 800.0) == runs[1].predict(last, 800.0)


def test_epochs_that_were_added_up_over_resumes_are_those_of_a_run_without():
    assert measured(epochs=12.240000000000002).epochs == 12.24


# ---------------------------------------------------------------- cost, and measures of one's own


def test_a_cost_is_known_only_if_all_of_the_time_had_a_price():
    """Part of the cost would be less than the cost."""
    known = {"train_seconds": 10.0, "device_seconds": 10.0, "cost": 3.0}
    assert measured(spent=Spending(**known)).cost == 3
    m = measured(spent=Spending(**known, unpriced_seconds=1.0))
    assert m.cost is None
    assert "price_per_device_hour" in m.provenance["cost"]


def test_emissions_are_known_only_if_all_of_the_energy_had_an_intensity():
    seen = Totals(energy_joules=7.2e6, energy_known_seconds=10.0)
    known = {"device_seconds": 10.0, "emissions_kg": 0.8, "devices": {"GPU-1": seen}}
    m = measured(spent=Spending(**known))
    assert (m.energy_kwh, m.emissions_kg) == (2, 0.8)
    assert m.provenance["emissions_kg"].startswith("measured: energy counter, over 100%")
    m = measured(spent=Spending(**known, unrated_joules=1.0))
    assert m.emissions_kg is None
    assert "carbon_intensity" in m.provenance["emissions_kg"]
    m = measured(spent=Spending(device_seconds=10.0))
    assert m.emissions_kg is None
    assert m.provenance["emissions_kg"] == m.provenance["energy_kwh"]


def test_own_measures_stand_beside_the_others():
    """NaN is how the ranks tell each other that there is no value."""
    m = measured(own={"learning_rate": 0.1, "loss_scale": math.nan})
    assert m.own == {"learning_rate": 0.1}
    assert m.provenance["learning_rate"].startswith("measured: ")
    assert m.provenance["loss_scale"].startswith("unavailable: ")


# ---------------------------------------------------------------- the checkpoint

FORMULAS = st.none() | st.just(H_AND_D) | st.just(Formula(D=0.5, origin="a study"))
RUNS = st.builds(
    Run,
    spent=st.builds(Spending, tokens=st.integers(0, 10**15), train_seconds=st.floats(0, 1e9)),
    lost_device_hours=st.floats(0, 1e9),
    planned_batches=st.none() | st.floats(1, 1e9),
    formula=FORMULAS,
    logged=st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
    fingerprints=st.lists(st.text(), max_size=2).map(tuple),
    previous=st.dictionaries(st.text(), st.floats(0, 1e30), max_size=3),
    reached=st.dictionaries(st.text(), st.floats(0, 1e30), max_size=3),
    reached_how=st.text(),
    curve=st.lists(st.lists(st.floats(0, 1e9), min_size=3, max_size=3), max_size=3),
    best=st.lists(st.floats(-9, 1e9), max_size=2),
)


@settings(max_examples=30)
@given(RUNS)
def test_a_run_comes_back_from_a_checkpoint_of_plain_values(run):
    """weights_only loading takes it, and so does JSON; nothing is lost."""
    file = io.BytesIO()
    torch.save(run.to_dict(run.spent), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert Run.from_dict(state, None) == run
    assert json.loads(json.dumps(state)) == state


def test_a_checkpoint_holds_the_spending_of_its_moment():
    """Not that of the last validation."""
    run = Run(spent=SPENT)
    now = SPENT.then(SPENT)
    assert Run.from_dict(run.to_dict(now), None).spent == now


def test_a_checkpoint_does_not_change_with_the_run_that_it_was_taken_of():
    """Lightning writes it later, or in a thread."""
    run = Run(logged={"L": 1.0})
    state = run.to_dict(run.spent)
    run.logged["L"] = 2.0
    assert state["logged"] == {"L": 1.0}


def test_a_formula_that_was_given_counts_before_the_one_in_the_checkpoint():
    """The user's word is the newest."""
    state = Run(formula=H_AND_D).to_dict(Spending())
    assert Run.from_dict(state, Formula(D=0.5)).formula == Formula(D=0.5)
    assert Run.from_dict(state, None).formula == H_AND_D


def test_a_function_in_a_checkpoint_must_be_given_again():
    """It is saved by name; without the function, reading is a ValueError."""
    formula = Formula(H=lambda m: 2.0)
    state = Run(formula=formula).to_dict(Spending())
    with pytest.raises(ValueError, match=r"H of this formula is the function .*lambda"):
        Run.from_dict(state, None)
    assert Run.from_dict(state, formula).formula is formula


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_another_schema_is_a_value_error(schema):
    """A checkpoint of an unknown version is refused as such."""
    state = {**Run().to_dict(Spending()), "schema": schema}
    with pytest.raises(ValueError, match="expected schema 1, got"):
        Run.from_dict(state, None)


def test_a_checkpoint_without_later_additions_is_read():
    """What it does not know starts empty."""
    state = Run(logged={"L": 1.0}, previous={"ln_T": 1.0}).to_dict(Spending())
    later = ("fingerprints", "previous", "reached", "reached_how", "curve", "best")
    for name in (*later, "lost_device_hours"):
        del state[name]
    run = Run.from_dict(state, None)
    assert (run.logged, run.previous, run.reached) == ({"L": 1.0}, {}, {})


def test_a_curve_without_counts_is_one_of_single_validations():
    state = Run().to_dict(Spending()) | {"curve": [[1.0, 2.5], [2.0, 2.25]]}
    assert Run.from_dict(state, None).curve == [[1.0, 2.5, 1], [2.0, 2.25, 1]]


@pytest.mark.parametrize("key", ["run", "spent", "planned_batches", "formula", "logged"])
def test_a_state_that_lacks_a_key_is_a_value_error_that_names_it(key):
    """All but what was added later is needed."""
    state = Run().to_dict(Spending())
    del state[key]
    with pytest.raises(ValueError, match=f"one without {key}"):
        Run.from_dict(state, None)


# ---------------------------------------------------------------- what was lost


def line(batch, hours, lost=0.0):
    m = Measurements(device_hours=hours, train_hours=hours, wall_hours=2 * hours, cost=hours)
    score = Formula().score(m)
    return Record(
        run="a", batch=batch, step=batch, epoch=0, time="", measurements=m, score=score,
        formula={}, lost_device_hours=lost,
    )  # fmt: skip


def at(batches, hours, lost=0.0):
    """A run that goes on from a checkpoint of so many batches and device hours."""
    spent = Spending(batches=batches, device_seconds=3600 * hours, train_seconds=3600 * hours)
    return Run(spent=spent, lost_device_hours=lost)


@pytest.mark.parametrize(
    ("run", "written", "lost"),
    [
        (at(10, 1.0), [], 0.0),
        (at(10, 1.0), [line(8, 0.9)], 0.0),  # the checkpoint is newer
        (at(10, 1.0), [line(14, 1.5), line(8, 0.8)], 0.5),
        (at(10, 1.0), [line(14, 1.5, lost=2.0), line(8, 0.8)], 2.5),  # lost before, too
        (at(10, 1.0, lost=3.0), [line(14, 1.5, lost=2.0)], 3.0),  # the checkpoint knows more
        (at(10, 1.0), [line(12, 1.2, lost=0.5), line(14, 1.5), line(8, 0.8)], 0.7),
    ],
)
def test_what_lies_between_a_checkpoint_and_the_newest_line_is_lost(run, written, lost):
    """On top of what was lost before; the spending that counts stays."""
    before = run.spent
    run.go_on_after(written)
    assert run.lost_device_hours == pytest.approx(lost)
    assert run.spent == before


def test_the_validation_at_the_checkpoints_own_batch_stays_and_so_does_its_time():
    """A checkpoint is saved before the validation of its step, which Lightning does not repeat."""
    run = at(10, 1.0)
    run.go_on_after([line(14, 1.5), line(10, 1.1)])
    assert run.spent.device_seconds == run.spent.train_seconds == pytest.approx(1.1 * 3600)
    assert run.spent.wall_seconds == pytest.approx(2.2 * 3600)
    assert run.spent.batches == 10
    assert run.lost_device_hours == pytest.approx(0.4)


def test_without_a_validation_there_is_spending_and_no_perplexity():
    """Absent, with the reason, and not NaN."""
    m = measured(None)
    assert (m.perplexity, m.nll, m.validation_tokens, m.bits_per_byte) == (None,) * 4
    assert m.nominal_perplexity is None
    for name in ("perplexity", "nll", "validation_tokens", "bits_per_byte", "nominal_perplexity"):
        assert m.provenance[name].startswith("unavailable: no validation ran"), name
    assert m.tokens == 8000


def test_two_runs_have_two_names():
    """The identifier tells the lines of two runs apart."""
    assert Run().id != Run().id
