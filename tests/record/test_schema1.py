"""Records that the first schema wrote, each line of which says everything."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import parts_of
from test_lines import JSON, places

from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.prediction import Prediction, Unpredictable
from lightning_lscore.record.file import append_record, read_records, records_since
from lightning_lscore.record.reader import Reader

WRITTEN = Path(__file__).with_name("schema1.jsonl")  # three validations of a small fit on a CPU
LINES = [json.loads(line) for line in WRITTEN.read_text().splitlines()]
LATER = ["level", "own", "lost_device_hours", "prediction", "hardware"]


def read(data):
    return Reader().take(json.dumps(data).encode())


def test_its_lines_are_read_with_the_names_of_today():
    """The measures that were named after GPUs too, in every part of the line."""
    records = read_records(WRITTEN)
    assert [r.step for r in records] == [line["step"] for line in LINES]
    for r, line in zip(records, LINES, strict=True):
        assert r.L == line["score"]["L"]
        assert r.measurements.busy_fraction == line["measurements"]["gpu_busy_fraction"]
        assert r.measurements.memory_peak_gib == line["measurements"]["gpu_memory_peak_gib"]
        assert r.measurements.perplexity == line["measurements"]["perplexity"]
        assert len(r.measurements.measured()) == len(line["measurements"])
        assert not [name for name in r.measurements.provenance if name.startswith("gpu_")]
        assert len(r.measurements.provenance) == len(line["provenance"])
        (device,) = r.devices
        assert device.peak_flops == line["devices"][0]["peak_flops"]
        assert r.hardware[device.key].busy_fraction == r.measurements.busy_fraction
        assert r.evaluation.fingerprints == tuple(line["evaluation"]["fingerprints"])
        assert isinstance(r.prediction, Unpredictable)
        assert r.measurements.own == {"rate": 0.5}
        assert Formula.from_dict(r.formula).score(r.measurements) == r.score
    assert records[0].formula is records[1].formula
    assert records[0].devices is records[1].devices


def test_a_formula_that_charges_for_a_renamed_measure_is_read_too():
    """Or the run could not be scored again."""
    data = copy.deepcopy(LINES[0])
    data["formula"]["H"] = {"measure": "gpu_memory_peak_gib", "reference": 1.0, "weight": 0.1}
    found = read(data)
    assert Formula.from_dict(found.formula).H.measure == "memory_peak_gib"
    assert Formula.from_dict(found.formula).score(found.measurements).L is not None


def test_a_run_goes_on_in_a_file_of_the_first_schema(tmp_path):
    """New lines stand behind the old ones, and both are one run."""
    path = tmp_path / "lscore.jsonl"
    path.write_bytes(WRITTEN.read_bytes())
    *old, last = read_records(path)
    again = replace(last, step=last.step + 1, batch=last.batch + 4)
    append_record(path, again)
    assert read_records(path) == [*old, last, again]
    assert records_since(path, last.run, last.batch) == [again, last]


def test_a_line_of_before_is_read():
    """What was added within the schema starts empty."""
    old = read({k: v for k, v in LINES[0].items() if k not in LATER})
    assert (old.prediction, old.lost_device_hours, old.hardware) == (None, 0.0, {})
    assert (old.measurements.level, old.measurements.own) == (None, {})


def test_a_prediction_is_read():
    names = Prediction.__dataclass_fields__
    data = {**LINES[0], "prediction": {**dict.fromkeys(names, 2.0), "best_L_high": "Infinity"}}
    assert read(data).prediction.best_L_high == float("inf")
    for bad in (3, None, [1], {"best_L": 1.0}, {**dict.fromkeys(names, 2.0), "growth": "x"}):
        with pytest.raises(ValueError, match=r"."):
            read({**data, "prediction": bad})


@pytest.mark.parametrize("key", sorted({*LINES[0]} - {"schema", *LATER}))
def test_a_line_without_one_of_its_keys_is_a_value_error(key):
    with pytest.raises(ValueError, match="not a record"):
        read({k: v for k, v in LINES[0].items() if k != key})


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(places(LINES[0]), key=str)), JSON, st.sampled_from(["set", "add", "cut"])
)
def test_a_mutated_line_is_a_record_or_a_value_error(path, value, how):
    """What is accepted can be written in the schema of today; the rest is a ValueError."""
    data = copy.deepcopy(LINES[0])
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    if how == "cut":
        del parent[path[-1]]
    elif how == "add" and isinstance(parent, dict):
        parent[f"{path[-1]}'"] = value
    else:
        parent[path[-1]] = value
    try:
        found = read(data)
    except ValueError:
        return
    if found is not None:
        assert found.L is None or isinstance(found.L, float)
        parts_of(found)
