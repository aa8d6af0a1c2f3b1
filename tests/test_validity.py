"""The benchmark of the stopping rule, on curves of one's own."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def validity(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import validity

    yield validity
    for name in ("validity", "public_curves", "stopping_rules"):
        sys.modules.pop(name, None)


def write(path, curves, columns=("set", "curve", "parameters", "spent", "planned", "loss")):
    """Curves by (set, name): losses, and learning rates where they are logged."""
    with open(path, "w", newline="") as file:
        out = csv.DictWriter(file, [*columns, "learning_rate"], restval="")
        out.writeheader()
        for (group, name), (losses, rates) in curves.items():
            for i, loss in enumerate(losses, 1):
                row = {"set": group, "curve": name, "spent": 100 * i, "loss": loss}
                if "planned" in columns:
                    row["planned"] = 100 * len(losses)
                out.writerow(row | ({"learning_rate": rates[i - 1]} if rates else {}))
    return str(path)


FEWEST = ("set", "curve", "spent", "loss")
TURNS = [3.4, 3.2, 3.1, 3.05, 3.03, 3.02, *[3.08 + 0.01 * i for i in range(14)]]
PLATEAU = [3.0] * 30 + [2.99 - 0.02 * i for i in range(10)]
HELD = [1.0] * 31 + [1.0 - 0.1 * i for i in range(9)]


def test_a_row_for_each_set_start_weight_and_rule(validity, tmp_path, capsys):
    files = [
        write(tmp_path / "a.csv", {("tuned", "x"): (TURNS, None), ("tuned", "y"): (TURNS, None)}),
        write(tmp_path / "b.csv", {("held", "z"): (PLATEAU, HELD)}, FEWEST),
    ]
    out = tmp_path / "rows.json"
    arguments = ["--curves", *files, "--json", str(out), "--weights", "0.05,0.1", "--only"]
    assert validity.main([*arguments, "stopping"]) == 0
    rows = {(r["set"], r["start"], r["weight"], r["rule"]): r for r in json.loads(out.read_text())}
    assert {k[0] for k in rows} == {"tuned", "held", "all that overfit"}
    assert {k[1] for k in rows} == {"scratch", "warm"}
    assert {k[2] for k in rows} == {0.05, 0.1}
    rules = {k[3] for k in rows}
    assert {"CostEarlyStopping", "never", "EarlyStopping(3) on loss", "Prechelt GL(2)"} <= rules
    ours = rows["tuned", "scratch", 0.05, "CostEarlyStopping"]
    assert (ours["curves"], ours["logged"], ours["within"]) == (2, 0, 1.0)
    assert ours["saved"] == pytest.approx(1 - 9 / 20)
    assert (ours["early"], ours["lost"]) == (0.0, 0.0)
    never = rows["tuned", "scratch", 0.05, "never"]
    assert (never["saved"], never["after"]) == (0.0, pytest.approx(14 / 20, abs=0.06))
    held = rows["held", "scratch", 0.1, "CostEarlyStopping"]
    assert (held["logged"], held["within"], held["saved"]) == (1, 1.0, 0.0)
    unknown = rows["held", "scratch", 0.1, "CostEarlyStopping, rate unknown"]
    assert unknown["within"] == 0.0
    assert "learning rate of 0 of them logged, of the rest unknown" in capsys.readouterr().out


def test_it_says_where_a_rival_is_better(validity, tmp_path, capsys):
    """One that gives up at once, on a curve that turns at once and too little for noise."""
    flat = [3.0, *[3.004 + 0.0001 * i for i in range(12)]]
    path = write(tmp_path / "a.csv", {("flat", "x"): (flat, None)})
    assert validity.main(["--curves", path, "--weights", "0.001", "--only", "stopping"]) == 0
    assert "flat, scratch, W 0.001: EarlyStopping(1) on loss saves" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("set,curve,spent\n", "Add loss"),
        ("set,curve,spent,loss\na,b,1,x\n", "finite number >= 0 in loss"),
        ("set,curve,spent,loss\na,b,2,1\na,b,1,1\n", "expected spent to grow"),
        ("set,curve,spent,loss\na,b,2,1\n", "at least 4 validations"),
    ],
)
def test_a_file_that_holds_no_curves_is_one_clear_line(text, message, validity, tmp_path, capsys):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert validity.main(["--curves", str(path)]) == 2
    assert message in capsys.readouterr().err
