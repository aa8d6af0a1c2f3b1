"""What the pages in docs/ and the README show runs as it stands there, and their links lead on."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import python_blocks, run_python
from lightning.pytorch.callbacks import EarlyStopping

from lightning_lscore import CostEarlyStopping, Factor, Formula, LScore, read_records
from lightning_lscore.cli import _parser, main
from lightning_lscore.equation.measures import OF_A_VALIDATION

ROOT = Path(__file__).parents[1]
PAGES = {p.stem: p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").glob("*.md"))}
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^ {4}lscore +(.*)$", re.MULTILINE)
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


# ---------------------------------------------------------------------- snippets and commands


class Bytes(torch.nn.Module):
    """A model of bytes that knows nothing."""

    def forward(self, input_ids):
        return torch.zeros(*input_ids.shape, 256)


def read_as_bytes(text, **options):
    return {"input_ids": list(text.encode())}


@pytest.fixture(scope="module")
def as_on_the_pages(readme_run, tmp_path_factory):
    """A folder with what the pages speak of: RUN, A, B, a log, finished runs and a formula."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(readme_run[0] / "lightning_logs" / "version_0", folder / "RUN")
    shutil.copy(ROOT / "benchmarks" / "data" / "finished.csv", folder)
    budget = Formula(D=Factor("tokens", 1e6), A=Factor("total_parameters", 1e6))
    budget.save(folder / "study.json")
    facts = "--tokens-per-step 4096 --peak-tflops 10 --held-out wiki"
    logs = {"A": ((3.2, 2.9, 2.8), "1e6", "0.5"), "B": ((3.1, 2.75, 2.7), "2e6", "0.8")}
    for name, (losses, parameters, hours) in logs.items():
        rows = [f"{100 * i},{loss}" for i, loss in enumerate(losses, start=1)]
        log = folder / "metrics.csv"  # B's stays, as that of the pages
        log.write_text("\n".join(["step,val_loss", *rows]))
        made = f"import {log} -o {folder / name} --parameters {parameters} --train-hours {hours}"
        assert main(shlex.split(f"{made} {facts}")) == 0
    return folder


@pytest.fixture
def here(as_on_the_pages, tmp_path, monkeypatch):
    """The working directory: a copy of that folder."""
    shutil.copytree(as_on_the_pages, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("page", [n for n in PAGES if n != "fabric" and python_blocks(PAGES[n])])
def test_each_snippet_runs(page, here):
    """One after the other, in one namespace."""
    names = {"model": Bytes(), "tokenizer": read_as_bytes, "text": "So be it. " * 100}
    snippets = [s for s in python_blocks(PAGES[page]) if "trainer." not in s]  # see readme_run
    for snippet in snippets:
        exec(compile(snippet, f"docs/{page}.md", "exec"), names)


@pytest.mark.parametrize("page", [n for n in PAGES if COMMAND.search(PAGES[n])])
def test_each_command_of_a_page_runs(page, here, capsys):
    for line in COMMAND.findall(PAGES[page]):
        assert main(shlex.split(line, comments=True)) == 0, (line, capsys.readouterr().err)


def test_each_command_of_the_readme_runs(here, capsys):
    stands_for = {"RUN RUN ...": "A B", "RUN ...": "A B", "LOG": "metrics.csv", "FOLDER": "made"}
    lines = COMMAND.findall(README)
    assert len(lines) == 5
    for line in lines:
        for name, what in stands_for.items():
            line = line.replace(name, what)
        assert main(shlex.split(line, comments=True)) == 0, (line, capsys.readouterr().err)


def test_the_page_of_commands_has_each_of_them_with_an_example():
    (commands,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    page = PAGES["commands"]
    assert sorted(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == sorted(commands.choices)
    assert {line.split()[0] for line in COMMAND.findall(page)} == set(commands.choices)


def test_the_page_of_measures_names_each():
    named = set(re.findall(r"`(?:lscore/)?(\w+)`", PAGES["measures"]))
    assert set(OF_A_VALIDATION) <= named


@pytest.mark.parametrize("of", [LScore, CostEarlyStopping])
def test_each_argument_of_a_callback_is_on_a_page(of):
    """Those of Lightning's EarlyStopping apart."""
    ours = set(inspect.signature(of).parameters) - set(inspect.signature(EarlyStopping).parameters)
    pages = " ".join([README, *PAGES.values()])
    assert [name for name in ours if not re.search(rf"\b{name}\b", pages)] == []


# ---------------------------------------------------------------------- links


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in PAGES)])
def test_each_relative_link_leads_to_a_file(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [x for x in links if "://" not in x and not (path.parent / x).exists()]
    assert missing == []


def test_the_readme_links_to_every_page():
    assert {f"docs/{name}.md" for name in PAGES} <= set(re.findall(r"\]\(([^)]+)\)", README))
