from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from made_up_records import FALLING, record, run

from lightning_lscore import Run, read_run
from lightning_lscore.record.file import append_record


@pytest.fixture
def folder(tmp_path):
    for r in run():
        append_record(tmp_path / "lscore.jsonl", r)
    return tmp_path


def test_a_run_is_a_sequence_of_its_validations(folder):
    found = read_run(folder)
    assert isinstance(found, Run)
    assert [r.step for r in found] == list(range(1, 11))
    assert found[-1].step == len(found) == 10
    assert [r.step for r in found[:2]] == [1, 2]
    assert found.best is min(found, key=lambda r: r.L)
    assert found.name == str(folder)
    with pytest.raises(FileNotFoundError):
        read_run(folder / "nowhere")
    with pytest.raises(ValueError, match="expected at least one validation"):
        Run([])


def test_it_is_shown_as_a_table_in_text_and_in_html():
    """Of a long run the newest part; names stay names."""
    shown = repr(Run(run(), "my run"))
    assert shown.startswith("my run\n")
    assert "best L" in shown
    long = Run([record(i, 20.0 / i**0.1) for i in range(1, 101)], "<b>a</b>")
    assert len(repr(long).splitlines()) < 40
    page = long._repr_html_()
    assert page.count("<tr") == 31
    assert "&lt;b&gt;a&lt;/b&gt;" in page
    assert page.count("lowest L") == 1


def test_it_becomes_a_data_frame():
    pandas = pytest.importorskip("pandas")
    frame = Run(run()).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["perplexity"]) == FALLING
    assert {"step", "L", "f_D", "tokens", "device_hours", "mfu"} <= {*frame.columns}


def test_it_is_drawn_and_reported(tmp_path):
    pytest.importorskip("matplotlib")
    found = Run(run(), "mine")
    assert len(found.plot().axes) == 2
    found.report(tmp_path / "page.html")
    assert "mine" in (tmp_path / "page.html").read_text()


def test_a_record_and_its_score_are_short_and_have_L():
    r = record(3, 10.0)
    assert repr(r.score).startswith(f"Score(L={r.L:.6g}, perplexity=10, f_D=")
    assert len(repr(r)) < 200
    assert "step=3" in repr(r)
    lacking = replace(r.score, f_D=None, missing=("tokens: why",))
    assert repr(lacking).endswith("missing=('tokens: why',))")
    assert "L=None" in repr(lacking)


def test_reading_a_run_imports_neither_torch_nor_a_plotting_library(folder):
    code = (
        f"import sys, lightning_lscore; repr(lightning_lscore.read_run({str(folder)!r}));"
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
