"""What ``Measure.together`` says of a measure is what joining processes and devices does."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from lightning_lscore.equation.measures import OF_A_VALIDATION
from lightning_lscore.hardware.totals import Totals
from lightning_lscore.run.spending import Spending

DEVICES = 2


def process(device, share, *, hours, watts, known_seconds, gib):
    """One of two processes, each of which reads a device of its own; ``share`` is of all tokens."""
    return Spending(
        tokens=round(8000 * share),
        samples=round(80 * share),
        model_flops=4e9 * share,
        epochs=0.5,
        train_seconds=3600.0 * hours,
        wall_seconds=5400.0 * hours,
        # A process charges for all devices of the run, in its own time.
        device_seconds=DEVICES * 3600.0,
        cost=DEVICES * 2.5,
        capacity_flops=DEVICES * 3.6e15,
        emissions_kg=1e-7 * watts * known_seconds,
        devices={
            device: Totals(
                training_seconds=3600.0,
                observed_seconds=known_seconds,
                busy_seconds=known_seconds * share,
                busy_known_seconds=known_seconds,
                energy_joules=watts * known_seconds,
                energy_known_seconds=known_seconds,
                memory_peak_bytes=round(2 * gib * 2**30),
                memory_byte_seconds=gib * 2**30 * known_seconds,
                memory_known_seconds=known_seconds,
                sm_clock_mhz_seconds=1000 * share * known_seconds,
                sm_clock_known_seconds=known_seconds,
                throttled_seconds=0.5 * share * known_seconds,
                throttled_by_power_seconds=0.25 * share * known_seconds,
                throttled_by_heat_seconds=0.125 * share * known_seconds,
                throttled_known_seconds=known_seconds,
            )
        },
    )


def measures(spent):
    """The measures that spending gives, as a run derives them."""
    use = asdict(spent.hardware.use())
    del use["coverage"]  # of the readings: no measure
    power = use.pop("power_watts") * len(spent.devices)
    return use | {
        "power_watts": power,
        "tokens": spent.tokens,
        "samples": spent.samples,
        "model_flops": spent.model_flops,
        "epochs": spent.epochs,
        "train_hours": spent.train_seconds / 3600,
        "wall_hours": spent.wall_seconds / 3600,
        "device_hours": spent.device_seconds / 3600,
        "cost": spent.cost,
        "capacity_flops": spent.capacity_flops,
        "emissions_kg": spent.emissions_kg,
        "flops_per_token": spent.model_flops / spent.tokens,
        "tokens_per_second": spent.tokens / spent.train_seconds,
        "mfu": spent.model_flops / spent.capacity_flops,
    }


RATIOS = {
    "flops_per_token": ("model_flops", "tokens", 1),
    "tokens_per_second": ("tokens", "train_hours", 1 / 3600),
    "mfu": ("model_flops", "capacity_flops", 1),
}
"""Numerator, denominator, and the factor between their units."""

OVER_DEVICES = {"device_hours", "cost", "capacity_flops"}
"""A process holds the sum over the devices of all processes, not over its own alone."""

NOT_SPENT = {
    *("perplexity", "nll", "validation_tokens", "bits_per_byte", "nominal_perplexity"),
    *("steps", "trainable_parameters", "total_parameters", "active_parameters"),
    *("elasticity", "elasticity_needed"),
}
"""Of the held-out set, of the whole model, of the optimiser, or of the run's history."""


@pytest.mark.parametrize("known_seconds", [(1800.0, 1800.0), (1800.0, 600.0)])
@pytest.mark.parametrize("name", sorted(OF_A_VALIDATION.keys() - NOT_SPENT))
def test_processes_and_devices_come_together_as_the_table_says(name, known_seconds):
    """Every measure of spending, for samplers that cover the same time and different times."""
    a = process("GPU-1", 0.75, hours=1.0, watts=300.0, known_seconds=known_seconds[0], gib=4)
    b = process("GPU-2", 0.25, hours=0.9, watts=100.0, known_seconds=known_seconds[1], gib=6)
    one, other = measures(a), measures(b)
    both = measures(Spending.over_ranks([a, b]))
    together = OF_A_VALIDATION[name].together
    weights = [seconds / sum(known_seconds) for seconds in known_seconds]
    if together == "sum" and name in OVER_DEVICES:
        expected = one[name] / DEVICES + other[name] / DEVICES
    elif together == "sum" and name == "power_watts":
        # A sum of means: each counts for the time that it is known for.
        expected = DEVICES * (one[name] * weights[0] + other[name] * weights[1])
    elif together == "sum":
        expected = one[name] + other[name]
    elif together == "max":
        expected = max(one[name], other[name])
        assert expected != min(one[name], other[name])
    elif together == "mean":
        expected = one[name] * weights[0] + other[name] * weights[1]
    elif together == "ratio":
        above, below, unit = RATIOS[name]
        expected = both[above] / both[below] * unit
    else:
        assert together == "same"
        expected = one[name]
        assert expected == other[name]
    assert both[name] == pytest.approx(expected, rel=1e-12)


def test_every_measure_of_spending_is_joined_above():
    """A new row of the table needs a line in one of the two."""
    spent = process("GPU-1", 0.5, hours=1.0, watts=100.0, known_seconds=60.0, gib=1)
    assert measures(spent).keys() | NOT_SPENT == OF_A_VALIDATION.keys()
    assert not measures(spent).keys() & NOT_SPENT
