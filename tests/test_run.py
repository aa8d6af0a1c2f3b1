from __future__ import annotations

import io
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.formula import Factor, Formula, compute_optimal_tokens
from lightning_lscore.measurements import MEASURES, Measurements
from lightning_lscore.meter import Totals
from lightning_lscore.parameters import ParameterCount
from lightning_lscore.run import Evaluation, Run, measure
from lightning_lscore.spending import Spending

PARAMETERS = ParameterCount(trainable=600, total=1000)
DEVICE = {"key": "GPU-1", "name": "Invented", "peak_flops": 1e6, "peak_source": "invented"}
EVALUATION = Evaluation((30.0, 50.0), (10, 30), "the output's logits")
SPENT = Spending(
    tokens=8000,
    samples=80,
    model_flops=8000.0 * PARAMETERS.flops_per_token,
    batches=20,
    train_seconds=3600.0,
    device_seconds=7200.0,
    capacity_flops=7200e6,
    hardware=Totals(
        training_seconds=7200.0,
        observed_seconds=3600.0,
        busy_seconds=1800.0,
        busy_known_seconds=3600.0,
        energy_joules=360_000.0,
        energy_known_seconds=3600.0,
        memory_peak_bytes=3 * 2**30,
        readings=10,
    ),
)


def measured(evaluation=EVALUATION, spent=SPENT, **changes):
    options = {"steps": 10, "epochs": 0.5, "devices": [DEVICE, DEVICE], "reasons": {}}
    return measure(evaluation, spent, PARAMETERS, **{**options, **changes})


# ---------------------------------------------------------------- the evaluation


def test_perplexity_is_over_all_tokens_of_all_loaders():
    """Loaders weigh by their tokens, and each has a perplexity of its own."""
    assert EVALUATION.nll == 2.0
    assert EVALUATION.perplexity == math.exp(2)
    assert EVALUATION.perplexities == (math.exp(3), math.exp(50 / 30))
    assert EVALUATION.total_tokens == 40


def test_an_evaluation_without_tokens_is_nan_and_does_not_blame_the_logits():
    """Empty is NaN, never 0, and the provenance says that nothing was counted."""
    empty = Evaluation((0.0,), (0,), "logits")
    assert math.isnan(empty.perplexity)
    assert math.isnan(empty.perplexities[0])
    assert "logit was NaN" not in empty.provenance()


@pytest.mark.parametrize(
    ("nll", "why"), [(math.nan, "NaN because a logit"), (math.inf, "infinite because"), (1.0, "")]
)
def test_the_provenance_says_what_is_wrong_with_a_perplexity(nll, why):
    """Where logits were found, and why the result is no number."""
    provenance = Evaluation((nll, 1.0), (1, 1), "the output's logits").provenance()
    assert provenance.startswith("measured: the output's logits")
    assert why in provenance
    assert (";" in provenance) == bool(why)


def test_an_nll_beyond_a_float_keeps_its_value():
    """800 nats a token are infinite as a perplexity only."""
    m = measured(Evaluation((8000.0,), (10,), "logits"))
    assert (m.nll, m.perplexity) == (800.0, math.inf)


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
        "device_hours": 2,
        "capacity_flops": 7.2e9,
        "tokens_per_second": 8000 / 3600,
        "mfu": 8000 * 5200 / 7.2e9,
        "gpu_busy_fraction": 0.5,
        "gpu_memory_peak_gib": 3,
        "power_watts": 200,
        "energy_kwh": 0.1,
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
    m = run.with_elasticity(measured(**case))
    assert m.provenance.keys() == MEASURES.keys()
    for name in MEASURES:
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
    absent += ["mfu", "gpu_busy_fraction", "gpu_memory_peak_gib", "power_watts", "energy_kwh"]
    absent += ["bits_per_byte"]
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
    assert provenance["gpu_busy_fraction"] == "unavailable: no NVML"
    assert provenance["energy_kwh"] == "unavailable: no counter"
    assert provenance["power_watts"] == "unavailable: no counter", "it is the energy's mean"
    assert provenance["gpu_memory_peak_gib"] == "unavailable: no memory"


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
    m = measured(spent=Spending(train_seconds=4.0, device_seconds=4.0, hardware=totals))
    assert m.provenance["energy_kwh"].startswith(how)
    assert "25%" in m.provenance["energy_kwh"]


def test_an_idle_device_is_measured_as_zero_busy():
    """0 from readings is a measurement."""
    totals = Totals(observed_seconds=4.0, busy_known_seconds=4.0)
    m = measured(spent=Spending(train_seconds=4.0, device_seconds=4.0, hardware=totals))
    assert m.gpu_busy_fraction == 0.0


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
    first = run.with_elasticity(point(3.0, 100, 1e9))
    assert first.elasticity is None
    assert first.provenance["elasticity"].startswith("unavailable: it takes two validations")
    second = run.with_elasticity(point(2.9, 150, 2e9))
    assert second.elasticity == pytest.approx(-0.1 / math.log(2))
    assert second.provenance["elasticity"].endswith("spending in capacity_flops")
    third = run.with_elasticity(point(3.0, 200, 4e9))
    assert third.elasticity == pytest.approx(0.1 / math.log(2))


@pytest.mark.parametrize(
    "formula",
    [Formula(D=Factor("tokens", 1.0)), Formula(), Formula(H=lambda m: 1.0)],
    ids=["D", "none", "a function"],
)
def test_the_elasticity_is_in_tokens_where_H_has_no_measure(formula):
    """The measure of D, or tokens if that has none either."""
    run = Run(formula=formula)
    run.with_elasticity(point(3.0, 100))
    assert run.with_elasticity(point(2.0, 200)).elasticity == pytest.approx(-1 / math.log(2))


def test_the_elasticity_falls_back_on_D_where_H_was_not_measured():
    """A device without a known peak leaves the tokens to compare by."""
    run = Run(formula=H_AND_D)
    run.with_elasticity(point(3.0, 100))
    assert run.with_elasticity(point(2.0, 200)).elasticity == pytest.approx(-1 / math.log(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_elasticity_is_absent_next_to_a_perplexity_that_is_no_number(bad):
    """Neither that validation nor the one after it has a slope; the third has one again."""
    run = Run(formula=H_AND_D)
    points = [(3.0, 1e9), (bad, 2e9), (2.9, 3e9), (2.8, 4e9)]
    slopes = [run.with_elasticity(point(nll, 1, flops)).elasticity for nll, flops in points]
    assert [s is None for s in slopes] == [True, True, True, False]


@pytest.mark.parametrize("flops", [1e9, 5e8, 0.0, None])
def test_the_elasticity_is_absent_where_nothing_more_was_spent(flops):
    """Two validations at one moment have no slope, and no exception."""
    run = Run(formula=Formula(H=Factor("capacity_flops", 1e9)))
    run.with_elasticity(point(3.0, 100, 1e9))
    assert run.with_elasticity(point(2.9, 100, flops)).elasticity is None


# ---------------------------------------------------------------- the checkpoint

FORMULAS = st.none() | st.just(H_AND_D) | st.just(Formula(D=0.5, origin="a study"))
RUNS = st.builds(
    Run,
    spent=st.builds(Spending, tokens=st.integers(0, 10**15), train_seconds=st.floats(0, 1e9)),
    planned_batches=st.none() | st.floats(1, 1e9),
    formula=FORMULAS,
    logged=st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
    last_point=st.none() | st.tuples(st.floats(0, 20), st.just("tokens"), st.floats(1, 1e30)),
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


def test_two_runs_have_two_names():
    """The identifier tells the lines of two runs apart."""
    assert Run().id != Run().id
