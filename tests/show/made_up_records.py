"""Validations of made-up runs, for the tests of what is shown."""

from __future__ import annotations

from lightning_lscore.equation.evidence import DeviceUse, EvaluationSet, OccupiedDevice
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.record import Record

FORMULA = Formula(
    D=Factor("tokens", 1000.0, 0.1),
    A=Factor("trainable_parameters", 100.0, 0.2),
    H=Factor("device_hours", 2.0, 0.1),
    origin="a budget",
)
DEVICE = OccupiedDevice(
    key="0",
    name="a CPU",
    kind="cpu",
    dtype="float32",
    peak_flops=1e12,
    peak_source="measured: once",
)
FALLING = [20.0, 15.0, 12.0, 10.0, 9.0, 8.5, 8.2, 8.1, 8.05, 8.02]


def record(step, perplexity, formula=FORMULA, run="a", **changes):
    m = Measurements(
        **{
            "perplexity": perplexity,
            "validation_tokens": 1000,
            "tokens": 100 * step,
            "trainable_parameters": 100,
            "total_parameters": 100,
            "device_hours": step / 10,
            "busy_fraction": 0.5,
            "mfu": 0.25,
            "provenance": {"tokens": "measured: counted"},
            **changes,
        }
    )
    return Record(
        run=run, batch=step, step=step, epoch=0, time="2026-01-02T00:00:00+00:00", measurements=m,
        score=formula.score(m), formula=formula.to_dict(), devices=(DEVICE,),
        evaluation=EvaluationSet(
            tokens=(1000,), perplexities=(perplexity,), source="a test", fingerprints=("01",)
        ),
        hardware={"0": DeviceUse(busy_fraction=0.5)}, versions={"torch": "2"},
        assumptions={"plan": "10 batches, counted"},
    )  # fmt: skip


def run(perplexities=FALLING, **changes):
    return [record(i, T, **changes) for i, T in enumerate(perplexities, 1)]
