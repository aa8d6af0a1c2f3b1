from __future__ import annotations

import pytest

from lightning_lscore.equation import baseline as baseline_module
from lightning_lscore.equation.baseline import register_reader
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.file import append_record
from lightning_lscore.record.record import Record


def baseline(**measured):
    formula = Formula(
        D=Factor("tokens", 7.0, 0.3, c=0.5), A=0.9, H=Factor("device_hours", 2.0, idle_price=0.0)
    )
    m = Measurements(**{"perplexity": 20.0, "tokens": 1000, "device_hours": 3.0, **measured})
    return Record(
        run="b", batch=1, step=5, epoch=0, time="", measurements=m,
        score=formula.score(m), formula=formula.to_dict(),
    )  # fmt: skip


def test_a_baseline_ends_with_its_perplexity_times_its_constants(tmp_path):
    """All that grew is its own reference; measures, weights and c stay."""
    run = baseline(busy_fraction=0.25)
    frozen = Formula.from_record(run)
    assert frozen.score(run.measurements).L == pytest.approx(20.0 * 0.9)
    assert frozen.D == Factor("tokens", 1000.0, 0.3, c=0.5)
    append_record(tmp_path / "lscore.jsonl", run)
    assert Formula.from_record(tmp_path) == frozen


def test_a_baseline_without_a_measure_is_refused():
    """It says which measure, and why it is missing."""
    with pytest.raises(ValueError, match="a value of 'device_hours', got None: unavailable"):
        Formula.from_record(baseline())


def test_a_path_is_read_by_the_registered_reader(monkeypatch):
    """The equation knows no record file: the newest reader opens it, and the last record counts."""
    monkeypatch.setattr(baseline_module, "_readers", [])
    register_reader(lambda path: pytest.fail("an older reader was called"))
    register_reader(lambda path: [path, baseline(busy_fraction=0.25)])
    assert Formula.from_record("anywhere").origin == "the baseline run b at step 5"


def test_a_path_without_a_reader_is_refused(monkeypatch):
    """The error says what registers one; a record needs none."""
    monkeypatch.setattr(baseline_module, "_readers", [])
    with pytest.raises(RuntimeError, match=r"'runs/a' and none; import lightning_lscore"):
        Formula.from_record("runs/a")
    assert Formula.from_record(baseline(busy_fraction=0.25)).D.reference == 1000.0
