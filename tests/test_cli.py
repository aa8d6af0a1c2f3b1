"""The command, as a person calls it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from lightning_lscore.cli import main
from lightning_lscore.equation.evidence import EvaluationSet
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.prediction import Unpredictable
from lightning_lscore.record.file import RECORD_FILE, append_record
from lightning_lscore.record.record import Record

FORMULA = Formula(D=Factor("tokens", 1000.0, 0.1), H=Factor("device_hours", 2.0, 0.3))

HELD_OUT = EvaluationSet(tokens=(9,), perplexities=(2.0,), source="logits", fingerprints=("01",))


def record(step, perplexity, run="a", **changes):
    values = {"tokens": 100 * step, "trainable_parameters": 10**7, "device_hours": step / 10}
    m = Measurements(**{"perplexity": perplexity, **values, **changes})
    return Record(
        run=run, batch=step, step=step, epoch=0, time="", measurements=m,
        score=FORMULA.score(m), formula=FORMULA.to_dict(), evaluation=HELD_OUT,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """The folder of a run of two validations."""
    for r in (record(1, 20.0), record(5, 10.0)):
        append_record(tmp_path / "one" / RECORD_FILE, r)
    return tmp_path / "one"


def call(capsys, *arguments):
    """Exit status, output and errors."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as end:
        status = end.code
    return (status, *capsys.readouterr())


def test_explain_gives_the_overview(capsys):
    status, out, err = call(capsys, "explain")
    assert (status, err) == (0, "")
    assert "L = perplexity(T) · f(D) · f(A) · f(H)" in out
    assert "14.535" in out


def test_explain_computes_the_numbers_it_is_given(capsys):
    numbers = ["--perplexity", 20, "--D", 0.95, "--A", 0.9, "--H", 0.85]
    assert "= 14.535\n" in call(capsys, "explain", *numbers)[1]
    assert "20 · 1 · 1 · 0.5 = 10\n" in call(capsys, "explain", "--perplexity", 20, "--H", 0.5)[1]


def test_explain_tells_what_a_formula_or_a_size_asks_for(capsys, tmp_path):
    FORMULA.save(tmp_path / "f.json")
    assert "device_hours" in call(capsys, "explain", "--formula", tmp_path / "f.json")[1]
    assert "1e+09 parameters" in call(capsys, "explain", "--parameters", "1e9")[1]


def test_explain_explains_a_run_or_its_record_file(capsys, run):
    for path in (run, run / RECORD_FILE):
        status, out, _ = call(capsys, "explain", path)
        assert status == 0
        assert "From step 1 to step 5, the best L" in out
    assert "From step 5" not in call(capsys, "explain", run, "--from", 1, "--to", 5)[1]


def test_explain_scores_a_run_under_another_formula(capsys, run, tmp_path):
    other = Formula(D=Factor("steps", 10.0), A=Factor("trainable_parameters", 1e6, 1.0))
    other.save(tmp_path / "f.json")
    status, _, err = call(capsys, "explain", run, "--formula", tmp_path / "f.json")
    assert status == 2
    assert "steps: unavailable" in err
    replace(other, D=1.0).save(tmp_path / "f.json")
    assert "100.0000" in call(capsys, "explain", run, "--formula", tmp_path / "f.json")[1]


def test_compare_shows_runs_side_by_side(capsys, run, tmp_path):
    append_record(tmp_path / "two" / RECORD_FILE, record(5, 9.0, run="b"))
    status, out, _ = call(capsys, "compare", run, tmp_path / "two")
    assert status == 0
    table = [line.split()[0] for line in out.splitlines()[3:5]]
    assert sorted(table) == sorted([str(run), str(tmp_path / "two")])
    assert f"Against {run}, whose lowest perplexity" in out
    again = call(capsys, "compare", run, tmp_path / "two", "--baseline", tmp_path / "two")[1]
    assert f"Against {tmp_path / 'two'}, whose lowest perplexity" in again
    repeated = call(capsys, "compare", run, tmp_path / "two", "--repeats", run, tmp_path / "two")
    assert "A tie" in repeated[1]


CSV = "parameters,tokens,loss\n" + "".join(
    f"{N},{D},{2 + 50 * N**-0.25 + 50 * D**-0.25}\n" for N in (1e7, 1e8, 1e9) for D in (1e9, 1e10)
)


def test_show_prints_a_table_of_a_run_and_a_line_for_each_of_several(capsys, run, tmp_path):
    append_record(tmp_path / "two" / RECORD_FILE, record(5, 9.0, run="b"))
    status, out, _ = call(capsys, "show", run)
    assert status == 0
    assert "lowest L" in out
    status, out, _ = call(capsys, "show", run, tmp_path / "two")
    assert status == 0
    assert len(out.strip().splitlines()) >= 3
    assert call(capsys, "show", run, "--rows", "1")[0] == 2


def test_report_writes_a_page_and_its_pictures(capsys, run, tmp_path):
    page = tmp_path / "page.html"
    status, out, _ = call(capsys, "report", run, "-o", page, "--svg", tmp_path / "pictures")
    assert status == 0
    assert page.read_text().startswith("<!doctype html>")
    assert f"Wrote {page} (" in out
    assert (tmp_path / "pictures" / "perplexity.svg").exists()
    status, _, err = call(capsys, "report", run, "-o", tmp_path / "nowhere" / "page.html")
    assert status == 2
    assert "nowhere" in err


def test_a_run_without_lscore_is_imported_and_served_like_any_other(capsys, tmp_path):
    rows = [f"{10 * i - 1},{3 - i / 10}" for i in range(1, 9)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,val_loss", *rows]))
    known = ("--parameters", "1e6", "--tokens-per-step", "100", "--train-hours", "1")
    status, out, _ = call(capsys, "import", tmp_path, "-o", tmp_path / "new", *known)
    assert status == 0
    assert "Imported 8 validations of Lightning's CSVLogger (metrics.csv)" in out
    assert "val_loss is the mean NLL of a token in nats" in out
    assert "cost: unavailable: say --train-hours and --price" in out
    for command in ("show", "explain", "compare"):
        status, out, _ = call(capsys, command, tmp_path / "new")
        assert status == 0
        assert "9.0250" in out
    status, _, err = call(capsys, "import", tmp_path, "-o", tmp_path / "new")
    assert status == 2
    assert "exists. Choose another folder" in err


def test_calibrate_writes_a_formula_out_of_a_table(capsys, tmp_path):
    (tmp_path / "runs.csv").write_text(CSV)
    formula = tmp_path / "formula.json"
    status, out, _ = call(capsys, "calibrate", tmp_path / "runs.csv", "-o", formula)
    assert status == 0
    assert "90 % interval" in out
    assert "Warning: Only 6 distinct runs" in out
    found = Formula.load(formula)
    assert 0 < found.H.weight <= found.D.weight
    assert "6 finished runs" in found.origin
    call(capsys, "calibrate", tmp_path / "runs.csv", "-o", formula, "--share", 0)
    assert Formula.load(formula).H.weight == 0


def test_calibrate_reads_the_last_validation_of_each_run(capsys, tmp_path):
    for i, (N, tokens, loss) in enumerate([(10**7, 5, 20.0), (10**8, 9, 12.0)]):
        for r in (record(1, 30.0, str(i)), record(tokens, loss, str(i), trainable_parameters=N)):
            append_record(tmp_path / str(i) / RECORD_FILE, r)
    status, out, err = call(capsys, "calibrate", tmp_path / "0", tmp_path / "1")
    assert "2 finished runs" in out
    assert status == 2
    assert "no formula can be made of these runs. The Chinchilla law was measured on" in err


def test_calibrate_writes_nothing_that_the_runs_cannot_tell(capsys, tmp_path):
    """Rates that the law alone gives are shown, and go into no file."""
    rows = [f"1e8,{i}e9,{3.6 - i / 10}" for i in range(1, 8)]
    (tmp_path / "runs.csv").write_text("\n".join(["parameters,tokens,loss", *rows]))
    status, out, err = call(
        capsys, "calibrate", tmp_path / "runs.csv", "-o", tmp_path / "formula.json"
    )
    assert status == 2
    assert "at least 90 % interval" in out
    assert "parameters varies by less than a factor of 2" in err
    assert "Add runs with at least 2 times as many parameters" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "formula.json").exists()


def test_the_gain_over_finished_runs_is_told_of_each_run(capsys, run, tmp_path):
    (tmp_path / "runs.csv").write_text(CSV)
    status, out, _ = call(capsys, "compare", run, "--gain", tmp_path / "runs.csv")
    assert status == 0
    assert "Compute-equivalent gain over the law of 6 finished runs" in out
    assert f"  {run}: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "nowhere"], "no record at nowhere"),
        (["explain", "--formula", "nowhere.json"], "nowhere.json"),
        (["explain", "--D", "1"], "expected --perplexity with --D, got none"),
        (["explain", "--perplexity", "0"], "expected a finite number > 0, got 0"),
        (["explain", "--perplexity", "2", "--D", "-1"], "expected a finite number > 0, got -1"),
        (["explain", "--perplexity", "two"], "invalid float value: 'two'"),
        (["explain", "--parameters", "-3"], "expected a finite number > 0, got -3"),
        (["compare", "nowhere"], "no record at nowhere"),
        (["calibrate", "nowhere.csv"], "nowhere.csv"),
        (["doctor", "--seconds", "inf"], "--seconds: expected a number from 0 to 3600, got inf"),
        (["doctor", "--seconds", "nan"], "--seconds: expected a number from 0 to 3600, got nan"),
        (["doctor", "--seconds=-1"], "--seconds: expected a number from 0 to 3600, got -1"),
        (["calibrate", "nowhere"], "no record at nowhere"),
        (["calibrate", "{csv}", "--share", "2"], "share: expected a number from 0 to 1, got 2"),
        (["calibrate", "{csv}", "nowhere"], "expected either records or CSV files, got both"),
        (["calibrate", "{csv}", "-o", "/nowhere/f.json"], "/nowhere/f.json"),
        (["calibrate"], "the following arguments are required: RUN"),
        ([], "the following arguments are required: COMMAND"),
        (["expalin"], "invalid choice: 'expalin'"),
    ],
)
def test_a_mistake_is_answered_in_a_line(arguments, message, capsys, tmp_path):
    """With status 2 and no traceback."""
    (tmp_path / "runs.csv").write_text(CSV)
    arguments = [a.format(csv=tmp_path / "runs.csv") for a in arguments]
    status, _, err = call(capsys, *arguments)
    assert status == 2
    assert message in err.splitlines()[-1]


def test_a_record_cannot_steer_the_terminal(capsys, tmp_path):
    """Neither colours nor a cursor that moves, wherever a text of the record is shown."""
    hostile = "\x1b[2J\x1b]0;title\x07\r\x9b31m"
    formula = {**FORMULA.to_dict(), "origin": hostile}
    r = replace(
        record(1, 20.0), run=hostile, formula=formula, prediction=Unpredictable(reason=hostile)
    )
    append_record(tmp_path / RECORD_FILE, r)
    outputs = [call(capsys, command, tmp_path) for command in ("explain", "compare")]
    for _, out, err in [*outputs, call(capsys, "explain", tmp_path, "--from", "7")]:
        assert all(c.isprintable() or c == "\n" for c in out + err)
        assert "\ufffd" in out or "got 7" in err


def test_a_run_without_a_validation_is_refused(capsys, tmp_path):
    (tmp_path / RECORD_FILE).write_text("")
    assert "at least one validation" in call(capsys, "explain", tmp_path)[2]


def test_the_module_is_the_command_and_does_without_torch(run):
    """Whoever only reads a record should not wait for it."""
    code = (
        "import runpy, sys; sys.argv[1:] = ['explain', sys.argv[1]]\n"
        "try: runpy.run_module('lightning_lscore', run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Run a: 2 validations")


def test_a_reader_that_has_seen_enough_is_no_error(run):
    """``lscore explain | head -1``."""
    command = f"{sys.executable} -m lightning_lscore explain | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_show_without_rich_says_what_to_install(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    status, _, err = call(capsys, "show", run)
    assert status == 2
    assert "pip install 'lightning-lscore[show]'" in err
