from __future__ import annotations

import io
import json
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.law import compute_optimal_tokens
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.hardware.totals import Totals
from lightning_lscore.model.epoch_shape import EpochShape
from lightning_lscore.model.parameters import ParameterCount
from lightning_lscore.record.record import Record
from lightning_lscore.run.plan import Plan
from lightning_lscore.run.progress import Progress
from lightning_lscore.run.spending import Spending
from lightning_lscore.run.state import RunState

PARAMETERS = ParameterCount(trainable=600, total=1000)
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


# ---------------------------------------------------------------- the formula


def test_the_formula_is_made_from_the_runs_own_plan():
    """Planned batches times the tokens a batch of all ranks, counted so far."""
    run = RunState(spending=SPENT, planned_batches=200.0)
    formula = run.settle_formula(PARAMETERS, Plan())
    assert formula == Formula.for_plan(parameters=1000, tokens=80_000)
    assert run.formula is formula


def test_a_formula_once_settled_stays():
    """What was spent since, or another plan, changes nothing."""
    run = RunState(spending=SPENT, planned_batches=200.0)
    formula = run.settle_formula(PARAMETERS, Plan())
    run.spending, run.planned_batches = SPENT.then(SPENT), 7.0
    assert run.settle_formula(PARAMETERS, Plan()) is formula
    given_ = Formula(D=0.5)
    assert (
        RunState(formula=given_, planned_batches=3.0).settle_formula(PARAMETERS, Plan()) is given_
    )


def test_without_a_plan_the_formula_is_compute_optimal():
    """A run without a finite end is charged against the law."""
    formula = RunState(spending=SPENT).settle_formula(PARAMETERS, Plan())
    assert formula.D.reference == compute_optimal_tokens(1000)


def test_a_validation_before_the_first_batch_settles_a_formula():
    """A run may go on from a checkpoint that LScore was not part of, validation first."""
    formula = RunState(planned_batches=200.0).settle_formula(PARAMETERS, Plan())
    assert formula.score(Measurements(perplexity=3.0, tokens=0)).perplexity == 3.0


def test_the_first_fits_plan_counts_with_other_processes_too():
    """A checkpoint before the first validation holds its tokens: batches are others from there."""
    run = RunState(planned_batches=200.0)
    saved = run.to_dict(SPENT)
    assert run.planned_tokens is None  # the batches to come may tell better
    later = RunState.from_dict(saved, None)
    later.spending = later.spending.then(Spending(tokens=8000, batches=80))
    formula = later.settle_formula(PARAMETERS, Plan())
    assert formula == Formula.for_plan(parameters=1000, tokens=80_000)
    assert later.planned_tokens == later.to_dict(later.spending)["planned_tokens"] == 80_000


def test_tokens_that_were_given_come_first():
    """Before the batches that the Trainer is set to process."""
    run = RunState(spending=SPENT, planned_batches=200.0)
    formula = run.settle_formula(PARAMETERS, Plan(tokens=5e9))
    assert formula == Formula.for_plan(parameters=1000, tokens=5e9)


def test_what_is_known_of_the_data_tells_the_tokens_of_the_plan():
    """Twenty batches of one are behind, and as many of three come in each epoch."""
    shape = EpochShape(length=40, read=(1,) * 20 + (3,) * 20)
    run = RunState(spending=SPENT, planned_batches=40.0, shape=shape)
    formula = run.settle_formula(PARAMETERS, Plan())
    assert formula == Formula.for_plan(parameters=1000, tokens=32_000)


# ---------------------------------------------------------------- the checkpoint

H_AND_D = Formula(D=Factor("tokens", 1e3), H=Factor("capacity_flops", 1e9))
FORMULAS = st.none() | st.just(H_AND_D) | st.just(Formula(D=0.5, origin="a study"))
RUNS = st.builds(
    RunState,
    spending=st.builds(Spending, tokens=st.integers(0, 10**15), train_seconds=st.floats(0, 1e9)),
    lost_device_hours=st.floats(0, 1e9),
    planned_batches=st.none() | st.floats(1, 1e9),
    planned_tokens=st.none() | st.floats(1, 1e15),
    formula=FORMULAS,
    logged=st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
    fingerprints=st.lists(st.text(), max_size=2).map(tuple),
    progress=st.builds(
        Progress,
        previous=st.dictionaries(st.text(), st.floats(0, 1e30), max_size=3).map(
            lambda amounts: amounts and {**amounts, "ln_T": 1.0}
        ),
        reached=st.dictionaries(st.text(), st.floats(0, 1e30), max_size=3),
        reached_how=st.text(),
        curve=st.lists(st.lists(st.floats(1, 1e9), min_size=3, max_size=3), max_size=3),
        best=st.just([]) | st.lists(st.floats(-9, 1e9), min_size=2, max_size=2),
    ),
)


@settings(max_examples=30)
@given(RUNS)
def test_a_run_comes_back_from_a_checkpoint_of_plain_values(run):
    """weights_only loading takes it, and so does JSON; nothing is lost."""
    file = io.BytesIO()
    torch.save(run.to_dict(run.spending), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert RunState.from_dict(state, None) == run
    assert json.loads(json.dumps(state)) == state


def test_a_checkpoint_holds_the_spending_of_its_moment():
    """Not that of the last validation."""
    run = RunState(spending=SPENT)
    now = SPENT.then(SPENT)
    assert RunState.from_dict(run.to_dict(now), None).spending == now


def test_a_checkpoint_does_not_change_with_the_run_that_it_was_taken_of():
    """Lightning writes it later, or in a thread."""
    run = RunState(logged={"L": 1.0})
    state = run.to_dict(run.spending)
    run.logged["L"] = 2.0
    assert state["logged"] == {"L": 1.0}


def test_a_formula_that_was_given_counts_before_the_one_in_the_checkpoint():
    """The user's word is the newest."""
    state = RunState(formula=H_AND_D).to_dict(Spending())
    assert RunState.from_dict(state, Formula(D=0.5)).formula == Formula(D=0.5)
    assert RunState.from_dict(state, None).formula == H_AND_D


def test_a_function_in_a_checkpoint_must_be_given_again():
    """It is saved by name; without the function, reading is a ValueError."""
    formula = Formula(H=lambda m: 2.0)
    state = RunState(formula=formula).to_dict(Spending())
    with pytest.raises(ValueError, match=r"H of this formula is the function .*lambda"):
        RunState.from_dict(state, None)
    assert RunState.from_dict(state, formula).formula is formula


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_another_schema_is_a_value_error(schema):
    """A checkpoint of an unknown version is refused as such."""
    state = {**RunState().to_dict(Spending()), "schema": schema}
    with pytest.raises(ValueError, match="expected schema 1, got"):
        RunState.from_dict(state, None)


def test_a_checkpoint_without_later_additions_is_read():
    """What it does not know starts empty."""
    run = RunState(logged={"L": 1.0}, progress=Progress(previous={"ln_T": 1.0}))
    state = run.to_dict(Spending())
    later = ("fingerprints", "previous", "reached", "reached_how", "curve", "best")
    for name in (*later, "lost_device_hours"):
        del state[name]
    run = RunState.from_dict(state, None)
    assert (run.logged, run.progress) == ({"L": 1.0}, Progress())


def test_a_curve_without_counts_is_one_of_single_validations():
    state = RunState().to_dict(Spending()) | {"curve": [[1.0, 2.5], [2.0, 2.25]]}
    assert RunState.from_dict(state, None).progress.curve == [[1.0, 2.5, 1], [2.0, 2.25, 1]]


@pytest.mark.parametrize("key", ["run", "spent", "planned_batches", "formula", "logged"])
def test_a_state_that_lacks_a_key_is_a_value_error_that_names_it(key):
    """All but what was added later is needed."""
    state = RunState().to_dict(Spending())
    del state[key]
    with pytest.raises(ValueError, match=f"one without {key}"):
        RunState.from_dict(state, None)


SPOILED = [
    ("run", 7), ("run", None), ("spent", []), ("spent", {"tokens": "many"}), ("spent", None),
    ("spent", {"tokens": -1}), ("spent", {"cost": math.nan}), ("spent", {"devices": {"a": 1}}),
    ("spent", {"batches": math.inf}), ("lost_device_hours", -1.0), ("lost_device_hours", "1"),
    ("planned_batches", 0), ("planned_batches", "x"), ("planned_batches", [1]),
    ("formula", 3), ("formula", {"lscore_formula": 1, "D": "x"}), ("formula", {"D": {}}),
    ("logged", 1), ("logged", {"L": []}), ("logged", {1: 1.0}), ("fingerprints", 5),
    ("fingerprints", [None]), ("previous", {"tokens": 1.0}), ("previous", [1]), ("curve", 4),
    ("curve", [[1]]), ("curve", [[1.0, math.inf, -2]]), ("curve", [["a", 1, 1]]), ("best", [1.0]),
    ("best", {"a": 1}), ("reached", {"tokens": None}), ("spent", {"tokens": 1e400}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), SPOILED, ids=str)
def test_a_state_that_was_tampered_with_is_a_value_error(key, value):
    """The one that is documented, whatever is wrong."""
    state = {**RunState().to_dict(Spending()), key: value}
    with pytest.raises(ValueError, match="expected"):
        RunState.from_dict(state, None)


@pytest.mark.parametrize("state", [None, 3, [], "state", {}])
def test_what_is_no_state_at_all_is_a_value_error(state):
    with pytest.raises(ValueError, match="expected schema 1"):
        RunState.from_dict(state, None)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, torch.tensor, Decimal])
def test_numbers_of_other_libraries_enter_no_checkpoint(kind):
    """Loading it with weights_only would refuse the whole checkpoint."""
    run = RunState(
        spending=Spending(tokens=kind(3), cost=kind(2), devices={"a": Totals(readings=kind(1))}),
        lost_device_hours=kind(1),
        planned_batches=kind(9),
        formula=Formula(D=Factor(np.str_("tokens"), kind(5), kind(1), c=kind(2)), A=kind(1)),
        logged={np.str_("L"): kind(2)},
        progress=Progress(curve=[[kind(1), kind(2), kind(3)]], best=[kind(1), kind(2)]),
    )
    file = io.BytesIO()
    torch.save(run.to_dict(run.spending), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert json.loads(json.dumps(state)) == state
    again = RunState.from_dict(state, None)
    assert (again.spending.tokens, again.spending.cost, again.logged) == (3, 2.0, {"L": 2.0})
    assert again.formula == Formula(D=Factor("tokens", 5, 1, c=2), A=1)


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
    spending = Spending(batches=batches, device_seconds=3600 * hours, train_seconds=3600 * hours)
    return RunState(spending=spending, lost_device_hours=lost)


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
    before = run.spending
    run.count_lost(written)
    assert run.lost_device_hours == pytest.approx(lost)
    assert run.spending == before


def test_the_validation_at_the_checkpoints_own_batch_stays_and_so_does_its_time():
    """A checkpoint is saved before the validation of its step, which Lightning does not repeat."""
    run = at(10, 1.0)
    run.count_lost([line(14, 1.5), line(10, 1.1)])
    assert run.spending.device_seconds == run.spending.train_seconds == pytest.approx(1.1 * 3600)
    assert run.spending.wall_seconds == pytest.approx(2.2 * 3600)
    assert run.spending.batches == 10
    assert run.lost_device_hours == pytest.approx(0.4)


def test_two_runs_have_two_names():
    """The identifier tells the lines of two runs apart."""
    assert RunState().id != RunState().id
