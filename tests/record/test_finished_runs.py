"""Finished runs out of records and tables."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lightning_lscore.equation.evidence import EvaluationSet
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.file import RECORD_FILE, append_record
from lightning_lscore.record.finished_runs import read_finished
from lightning_lscore.record.record import Record


def end(run, perplexity, N, tokens, *, mark="01", counted=None, **measures):
    m = Measurements(perplexity=perplexity, tokens=tokens, trainable_parameters=N, **measures)
    return Record(
        run=run, batch=tokens, step=tokens, epoch=0, time="", measurements=m,
        score=Formula().score(m), formula=Formula().to_dict(),
        evaluation=EvaluationSet(
            tokens=(9,), perplexities=(perplexity,), source="logits", bytes=counted,
            fingerprints=(mark,),
        ),
    )  # fmt: skip


def folders(tmp_path, *records):
    """One folder a record; their paths."""
    paths = [tmp_path / str(i) for i in range(len(records))]
    for path, r in zip(paths, records, strict=True):
        append_record(path / RECORD_FILE, r)
    return paths


def test_the_last_validation_of_each_run_counts(tmp_path):
    """Also of several in one file."""
    file = tmp_path / RECORD_FILE
    for r in (end("a", 9.0, 5, 10), end("a", 7.0, 5, 20), end("b", 6.0, 6, 30)):
        append_record(file, r)
    found = read_finished([tmp_path])
    assert (found.parameters, found.tokens, found.T) == ((5, 6), (20, 30), "perplexity")
    assert found.loss == pytest.approx((math.log(7), math.log(6)))


def test_runs_with_other_tokenizers_are_told_by_their_bytes(tmp_path):
    """The same text in other tokens, where all know their bytes."""
    ends = [
        end("a", 9.0, 5, 10, counted=[50], bits_per_byte=1.0),
        end("b", 90.0, 6, 20, mark="02", counted=[50], bits_per_byte=0.9),
    ]
    found = read_finished(folders(tmp_path, *ends))
    assert found.T == "nominal_perplexity"
    assert found.loss == pytest.approx([4 * bits * math.log(2) for bits in (1.0, 0.9)])


@pytest.mark.parametrize("change", [{}, {"counted": [51], "bits_per_byte": 0.9}])
def test_runs_on_other_sets_are_refused(change, tmp_path):
    """Their losses do not compare, in tokens or in bytes."""
    ends = [end("a", 9.0, 5, 10, counted=[50]), end("b", 8.0, 6, 20, mark="02", **change)]
    with pytest.raises(ValueError, match=r"1 was evaluated on other held-out tokens than .*0"):
        read_finished(folders(tmp_path, *ends))


def test_a_run_in_which_something_is_missing_is_named(tmp_path):
    """With the reason that its record gives."""
    lacking = end("a", 9.0, 5, 10)
    m = replace(lacking.measurements, tokens=None, provenance={"tokens": "unavailable: no ids"})
    (path,) = folders(tmp_path, replace(lacking, measurements=m))
    with pytest.raises(ValueError, match=r"0: expected a run with a value of 'tokens': .*no ids"):
        read_finished([path])


def test_tables_are_joined(tmp_path):
    """Other columns are passed over."""
    for name, row in (("a", "1e7,1e9,3.5,x"), ("b", "1e8,2e9,3.1,y")):
        (tmp_path / f"{name}.csv").write_text(f"parameters,tokens,loss,set\n{row}\n")
    found = read_finished([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert (found.parameters, found.tokens, found.loss) == ((1e7, 1e8), (1e9, 2e9), (3.5, 3.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns parameters, tokens, loss, got nothing"),
        ("parameters,tokens\n", "got parameters, tokens. Add loss"),
        ("parameters,tokens,loss\n", "expected at least one finished run, got none"),
        ("parameters,tokens,loss\n1,2,x\n", "line 2: expected a finite number > 0 in loss"),
        ("parameters,tokens,loss\n1,2\n", "line 2: expected a finite number > 0 in loss, got None"),
        ("parameters,tokens,loss\n1,2,nan\n", "line 2: expected a finite number > 0 in loss"),
        ("parameters,tokens,loss\n0,2,3\n", "line 2: expected a finite number > 0 in parameters"),
    ],
)
def test_a_table_that_is_none_is_named_with_its_line(text, message, tmp_path):
    """What was expected, what was got."""
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_finished([path])


def test_records_without_a_validation_are_no_runs(tmp_path):
    (tmp_path / RECORD_FILE).write_text("")
    with pytest.raises(ValueError, match="expected at least one finished run, got none"):
        read_finished([tmp_path])
