from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lightning_lscore.equation.evidence import OccupiedDevice
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measures import MEASURES
from lightning_lscore.hardware.totals import Totals
from lightning_lscore.heldout.evaluation import Evaluation
from lightning_lscore.model.parameters import ParameterCount
from lightning_lscore.run import measure
from lightning_lscore.run.progress import Progress
from lightning_lscore.run.spending import Spending

PARAMETERS = ParameterCount(trainable=600, total=1000)
DEVICE = OccupiedDevice(
    key="GPU-1", name="Invented", kind="cuda", dtype="float32", peak_flops=1e6,
    peak_source="invented",
)  # fmt: skip
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


def measured(
    evaluation=EVALUATION, spending=SPENT, *, steps=10, epochs=0.5, devices=(DEVICE, DEVICE),
    missing=None, own=None,
):  # fmt: skip
    return measure.together(
        measure.held_out(evaluation),
        measure.data(spending, steps, epochs),
        measure.model(spending, PARAMETERS, "6 FLOP per parameter"),
        measure.time(spending, devices),
        measure.hardware(spending, devices, missing or {}),
        measure.own(own or {}),
    )


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
    "nothing spent": {"spending": NOTHING},
    "uncounted batches": {"spending": Spending(batches=2, uncounted_batches=1, train_seconds=1.0)},
    "no sampler": {"spending": Spending(tokens=5, train_seconds=1.0, device_seconds=1.0)},
    "no length": {"epochs": None},
    "no tokens": {"evaluation": Evaluation((0.0,), (0,), "logits")},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_measure_says_where_it_came_from_or_why_it_is_missing(case):
    """Measured, estimated or unavailable, each with words, for every measure there is."""
    case = {"spending": SPENT, **case}
    if case["spending"].device_seconds == 0:
        case["spending"] = Spending(
            **{f: getattr(case["spending"], f) for f in ("tokens", "batches", "uncounted_batches")}
        )
    m = Progress().take_in(Formula(), measured(**case), 1)
    names = {name for name in MEASURES if not name.endswith("_to_level")}
    assert m.provenance.keys() == names
    for name in names:
        how, _, words = m.provenance[name].partition(": ")
        available = {"measured", "estimated"}
        assert (how in available) if m.get(name) is not None else (how == "unavailable"), name
        assert len(words) > 5, name


def test_what_is_not_known_is_absent_and_never_zero():
    """A run without device readings, peaks or tokens has no numbers for them."""
    spending = Spending(batches=4, uncounted_batches=4, train_seconds=10.0, device_seconds=10.0)
    device = replace(DEVICE, peak_flops=None, peak_source="unavailable: unknown device")
    m = measured(spending=spending, epochs=None, devices=[device])
    absent = ["tokens", "samples", "epochs", "model_flops", "capacity_flops", "tokens_per_second"]
    absent += ["mfu", "busy_fraction", "memory_peak_gib", "power_watts", "energy_kwh"]
    absent += ["bits_per_byte", "flops_per_token"]
    assert {name: m.get(name) for name in absent} == dict.fromkeys(absent)
    assert "count_tokens" in m.provenance["tokens"]
    assert "unknown device" in m.provenance["capacity_flops"]
    assert m.train_hours == pytest.approx(10 / 3600)


def test_what_the_sampler_misses_reaches_the_provenance():
    """Whoever lacks energy reads what the driver said."""
    spending = Spending(tokens=5, train_seconds=1.0, device_seconds=1.0)
    missing = {
        "busy_fraction": "no NVML",
        "energy_joules": "no counter",
        "power_watts": "no sensor",
        "memory_used_bytes": "no memory",
    }
    provenance = measured(spending=spending, missing=missing).provenance
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
    m = measured(
        spending=Spending(train_seconds=4.0, device_seconds=4.0, devices={"GPU-1": totals})
    )
    assert m.provenance["energy_kwh"].startswith(how)
    assert "25%" in m.provenance["energy_kwh"]


def test_an_idle_device_is_measured_as_zero_busy():
    """0 from readings is a measurement."""
    totals = Totals(observed_seconds=4.0, busy_known_seconds=4.0)
    m = measured(
        spending=Spending(train_seconds=4.0, device_seconds=4.0, devices={"GPU-1": totals})
    )
    assert m.busy_fraction == 0.0


# ---------------------------------------------------------------- cost, and measures of one's own


def test_a_cost_is_known_only_if_all_of_the_time_had_a_price():
    """Part of the cost would be less than the cost."""
    known = {"train_seconds": 10.0, "device_seconds": 10.0, "cost": 3.0}
    assert measured(spending=Spending(**known)).cost == 3
    m = measured(spending=Spending(**known, unpriced_seconds=1.0))
    assert m.cost is None
    assert "price_per_device_hour" in m.provenance["cost"]


def test_emissions_are_known_only_if_all_of_the_energy_had_an_intensity():
    seen = Totals(energy_joules=7.2e6, energy_known_seconds=10.0)
    known = {"device_seconds": 10.0, "emissions_kg": 0.8, "devices": {"GPU-1": seen}}
    m = measured(spending=Spending(**known))
    assert (m.energy_kwh, m.emissions_kg) == (2, 0.8)
    assert m.provenance["emissions_kg"].startswith("measured: energy counter, over 100%")
    m = measured(spending=Spending(**known, unrated_joules=1.0))
    assert m.emissions_kg is None
    assert "carbon_intensity" in m.provenance["emissions_kg"]
    m = measured(spending=Spending(device_seconds=10.0))
    assert m.emissions_kg is None
    assert m.provenance["emissions_kg"] == m.provenance["energy_kwh"]


def test_own_measures_stand_beside_the_others():
    """NaN is how the ranks tell each other that there is no value."""
    m = measured(own={"learning_rate": 0.1, "loss_scale": math.nan})
    assert m.own == {"learning_rate": 0.1}
    assert m.provenance["learning_rate"].startswith("measured: ")
    assert m.provenance["loss_scale"].startswith("unavailable: ")


def test_epochs_that_were_added_up_over_resumes_are_those_of_a_run_without():
    assert measured(epochs=12.240000000000002).epochs == 12.24


def test_without_a_validation_there_is_spending_and_no_perplexity():
    """Absent, with the reason, and not NaN."""
    m = measured(None)
    assert (m.perplexity, m.nll, m.validation_tokens, m.bits_per_byte) == (None,) * 4
    assert m.nominal_perplexity is None
    for name in ("perplexity", "nll", "validation_tokens", "bits_per_byte", "nominal_perplexity"):
        assert m.provenance[name].startswith("unavailable: no validation ran"), name
    assert m.tokens == 8000
