"""The example runs from the command line as its help says."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_lscore import read_records

SCRIPT = Path(__file__).parents[1] / "examples" / "train_gpt.py"


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"the quick brown fox {i} jumps\n" * 400)
    return folder


def test_the_example_trains_on_a_given_text_and_shows_the_run(corpus, tmp_path):
    options = ["--text", corpus, "--max-steps", 50, "--out", tmp_path / "out"]
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # robust beside other programs
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "train_gpt" / "version_0"
    first, second = read_records(folder)
    assert second.measurements.perplexity < first.measurements.perplexity < 256
    for column in ("perplexity", "f_D", "f_A", "f_H", "L"):
        assert column in done.stdout
    assert f"{second.L:.4f}" in done.stdout
    *_, stopped, because, saved, cost, weights = done.stdout.splitlines()
    assert stopped == "stopped  at step 50 of 50"
    assert because == "because  its plan is at an end, and spending still paid"
    assert saved == "saved    0.00 % of the plan, about 0 s of device time"
    assert cost == "cost     what perplexity may still have fallen"
    lowest = f"step=50-perplexity={second.measurements.perplexity:.4f}"
    assert weights.startswith("weights ")
    assert lowest in weights
    assert (folder / "lscore.png").read_bytes().startswith(b"\x89PNG")
    assert Path(weights.split(maxsplit=1)[1]).is_file()
    assert list(folder.glob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "no/such/file"], "there is no no/such/file"),
        (["--max-steps", "0"], "--max-steps: expected at least 1, got 0"),
        (["--text", "README-like.txt"], "expected text of at least"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("README-like.txt").write_text("too short")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert message in str(ended.value.code) + capsys.readouterr().err
