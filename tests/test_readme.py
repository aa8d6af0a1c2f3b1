"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import run_python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_program_runs_and_prints_what_it_says(tmp_path):
    programs = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (program,) = (p for p in programs if "class " in p)
    (shown,) = re.findall(r"```text\n(L .*?)```", README, re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    output = run_python("program.py", folder=tmp_path)

    def table(text: str) -> dict[str, float]:
        rows = re.findall(r"^(L|perplexity|f_[DAH]|lscore/\S+) +(\S+)$", text, re.MULTILINE)
        return {key: float(value) for key, value in rows}

    printed, promised = table(output), table(shown)
    # A machine with a readable energy counter prints more.
    assert promised.keys() <= printed.keys()
    for key in ("lscore/tokens", "lscore/validation_tokens", "lscore/total_parameters", "f_A"):
        assert printed[key] == promised[key]
    # The rest depends on the machine and its Python: perplexity on the text, f_H on the time.
    assert printed["perplexity"] == pytest.approx(promised["perplexity"], rel=0.3)
    assert printed["L"] == pytest.approx(
        printed["perplexity"] * printed["f_D"] * printed["f_A"] * printed["f_H"], rel=1e-4
    )
