"""The pages in docs/ show programs that run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_python

from lightning_lscore import read_records

ROOT = Path(__file__).parents[1]
FABRIC = [str(Path(sys.executable).with_name("fabric")), "run", "--accelerator", "cpu"]


@pytest.mark.parametrize(
    "launcher", [[], [*FABRIC, "--devices", "2"]], ids=["python", "fabric run"]
)
def test_a_loop_of_ones_own_measures_and_scores(launcher, tmp_path):
    """With Fabric, on one process and on two, which train on as many tokens together."""
    page = (ROOT / "docs" / "fabric.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    script = tmp_path / "program.py"
    script.write_text(program)
    output = run_python(*launcher, str(script), folder=tmp_path)
    lines = re.findall(r"^(\d+) tokens, perplexity (\S+), L (\S+)$", output, re.MULTILINE)
    assert [int(tokens) for tokens, _, _ in lines] == [56896, 113792, 170688]
    perplexities = [float(T) for _, T, _ in lines]
    assert 1 < perplexities[2] < perplexities[1] < perplexities[0] < 256
    # f_D and f_A are 1 at the end of the plan, so that L / perplexity is f_H, near 1 by its weight.
    assert float(lines[2][2]) / perplexities[2] == pytest.approx(1, abs=0.3)
    # The command serves the run as any other.
    assert len(read_records(tmp_path / "runs" / "bigrams")) == 3
    command = [sys.executable, "-m", "lightning_lscore", "explain", "runs/bigrams"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "3 validations" in told
    assert "L was moved by" in told


def test_the_program_imports_public_names_only():
    """And is as short as it says."""
    page = (ROOT / "docs" / "fabric.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert re.findall(r"lightning_lscore\S*", program) == ["lightning_lscore"]
    code = [line for line in program.splitlines() if line.strip()]
    assert len(code) <= 25
