"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import lightning.pytorch
import pytest
from conftest import python_blocks

from lightning_lscore import CostEarlyStopping, LScore

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURES = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
KEY_AND_VALUE = re.compile(r"^(L|perplexity|f_[DAH]|lscore/\S+) +(\S+)$", re.MULTILINE)


def test_the_readmes_program_prints_the_table_that_it_shows(readme_run):
    _, output = readme_run
    (shown,) = re.findall(r"```text\n(step .*?)```", README, re.DOTALL)
    head, *_ = shown.splitlines()
    assert head in output.splitlines()
    row = re.compile(r"^ *(\d+) +(\S+k) .* ([\d.]+)(?:  <)?$", re.MULTILINE)
    # Steps and tokens are those shown; perplexity depends on Python's own text, L on the time too.
    assert [r[:2] for r in row.findall(output)] == [r[:2] for r in row.findall(shown)]
    for (*_, printed), (*_, promised) in zip(row.findall(output), row.findall(shown), strict=True):
        assert float(printed) == pytest.approx(float(promised), rel=0.3)
    for line in ("spent: 487.68k tokens", "best L "):
        assert line in output
        assert line in shown


def test_the_keys_that_the_page_of_measures_shows_are_logged(readme_run):
    _, output = readme_run
    (shown,) = re.findall(r"```text\n(L .*?)```", MEASURES, re.DOTALL)
    printed, promised = (
        {key: float(value) for key, value in KEY_AND_VALUE.findall(text)}
        for text in (output, shown)
    )
    # A machine with a readable energy counter prints more.
    assert promised.keys() <= printed.keys()
    for key in ("lscore/tokens", "lscore/validation_tokens", "lscore/total_parameters", "f_A"):
        assert printed[key] == promised[key]
    # The rest depends on the machine and its Python: perplexity on the text, f_H on the time.
    assert printed["perplexity"] == pytest.approx(promised["perplexity"], rel=0.3)
    assert printed["L"] == pytest.approx(
        printed["perplexity"] * printed["f_D"] * printed["f_A"] * printed["f_H"], rel=1e-4
    )


def test_the_callbacks_of_the_first_snippet_fit_together():
    (line,) = (p for p in python_blocks(README) if "class " not in p)
    names = dict(vars(lightning.pytorch.callbacks), lightning=lightning)
    exec(line, {**names, "LScore": LScore, "CostEarlyStopping": CostEarlyStopping})
    kinds = [m.group() for m in re.finditer(r"\b[A-Z]\w+(?=\(.*\), +#)", line)]
    assert kinds == ["LScore", "CostEarlyStopping", "ModelCheckpoint", "ModelCheckpoint"]


def test_the_readme_stays_within_a_screen_and_a_half():
    assert len(README.encode()) < 7 * 1024
