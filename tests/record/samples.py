"""Records for the tests of this folder, and a line of each as text."""

from __future__ import annotations

import json

from lightning_lscore.equation.evidence import DeviceUse, EvaluationSet, OccupiedDevice
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.learning_rate import LearningRate
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.prediction import Prediction
from lightning_lscore.record.lines import lines_of
from lightning_lscore.record.reader import Reader
from lightning_lscore.record.record import Record

FORMULA = Formula(D=Factor("tokens", 1000.0), H=Factor("energy_kwh", 1.0), A=0.5)

EXPECTED = Prediction(
    best_L=4.0, best_L_low=3.5, best_L_high=4.5, growth=2.0, growth_low=1.5, growth_high=3.0,
    horizon=5.0,
)  # fmt: skip


def record(batch=1, run="a", *, perplexity=5.0, tokens=100, **changes):
    measurements = Measurements(
        perplexity=perplexity, tokens=tokens, provenance={"tokens": "measured: counted"}
    )
    values = {
        "run": run,
        "batch": batch,
        "step": 10 * batch,
        "epoch": 0,
        "time": "2025-01-01T00:00:00+00:00",
        "measurements": measurements,
        "score": FORMULA.score(measurements),
        "formula": FORMULA.to_dict(),
        "evaluation": held_out(perplexities=(perplexity,)),
        "lost_device_hours": 0.25,
        "planned": 40.0,
        "learning_rate": LearningRate(now=3e-4, decay="ahead"),
        "prediction": EXPECTED,
        "devices": (DEVICE,),
        "hardware": {"GPU-1": DeviceUse(energy_kwh=1.5, busy_fraction=0.5)},
        "versions": {"torch": "2"},
        "assumptions": {"plan": "4 batches, counted"},
        "fits": ("0a1b2c3d",),
    }
    return Record(**{**values, **changes})


DEVICE = OccupiedDevice(
    key="GPU-1", name="H100", kind="cuda", dtype="bfloat16", peak_flops=1e12, peak_source="a page"
)


def held_out(**changes):
    return EvaluationSet(**{"tokens": (7,), "perplexities": (5.0,), "source": "logits", **changes})


def ids(found):
    return [(r.run, r.batch) for r in found]


def text_of(written):
    """The two lines of a record alone: its context, and its validation."""
    _, context, validation = lines_of(written)
    return context + validation


def parts_of(written):
    """The same as JSON."""
    return tuple(strict(line) for line in text_of(written).splitlines())


def read(text):
    """The newest record of lines."""
    reader = Reader()
    found = [reader.take(line.encode(errors="replace")) for line in text.split("\n") if line]
    return found[-1]


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def strict(line):
    return json.loads(line, parse_constant=refuse)
