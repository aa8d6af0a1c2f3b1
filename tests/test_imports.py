from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_python

import lightning_lscore

ROOT = Path(lightning_lscore.__file__).parents[1]
HEAVY = {"torch", "torchmetrics", "lightning", "pytorch_lightning", "numpy", "matplotlib"}


def imported_by(code):
    """Top-level names of all modules that a fresh interpreter has after the code, and not before.

    What a start of the interpreter imports by itself, such as editable installs, does not count.
    """
    program = (
        "import json, sys\nbefore = set(sys.modules)\n"
        f"{code}\n"
        "print(json.dumps(sorted({n.partition('.')[0] for n in set(sys.modules) - before})))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


LIGHT = """
import lightning_lscore
from lightning_lscore import Factor, Formula, Measurements, Record, Score, read_records
import lightning_lscore.show.tables, lightning_lscore.show.plots, lightning_lscore.run.clock
dir(lightning_lscore)
assert Formula(D=0.5).score(Measurements(perplexity=2.0)).L == 1.0
assert read_records(PATH) == []
"""


def test_reading_and_scoring_records_needs_no_torch(tmp_path):
    """Whoever only looks at records does not wait for torch, lightning or matplotlib."""
    path = tmp_path / "lscore.jsonl"
    path.touch()
    assert not HEAVY & imported_by(LIGHT.replace("PATH", repr(str(path))))


PURE = [
    *("equation.measurements", "equation.formula", "equation.level", "run.clock"),
    *("record.file", "record.comparable", "record.finished_runs", "curve.patience"),
    *("show.tables", "show.explain", "cli"),
]


@pytest.mark.parametrize("module", PURE)
def test_the_pure_modules_import_only_the_standard_library(module):
    """The equation runs wherever Python does."""
    found = imported_by(f"import lightning_lscore.{module}")
    assert found - {"lightning_lscore"} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", ["probe", "meter", "sampler", "cpu"])
def test_the_meters_need_neither_torch_nor_a_vendors_library(module):
    """Reading devices is apart from training on them."""
    found = imported_by(f"import lightning_lscore.hardware.{module}")
    assert not (HEAVY | {"pynvml"}) & found


PLAIN_FIT = """
import sys, transformers, warnings
sys.path.insert(0, FOLDER)
import lightning.pytorch as pl
from conftest import PlainLM, loader
from lightning_lscore import LScore
trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[LScore()], logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
warnings.simplefilter("ignore")
trainer.fit(PlainLM(), loader(8), loader(4))
print({"accelerate", "transformers.modeling_utils"} & set(sys.modules))
"""


def test_a_fit_of_a_plain_module_imports_no_transformers(tmp_path):
    """Asking the lazy module transformers for a class would: a second, and a warning filter."""
    program = PLAIN_FIT.replace("FOLDER", repr(str(Path(__file__).parent)))
    assert run_python("-c", program, folder=tmp_path).splitlines()[-1] == "set()"


def test_the_boundary_check_can_fail():
    """A module that does import torch is found out."""
    assert "torch" in imported_by("import lightning_lscore.model.tokens")


@pytest.mark.parametrize("name", lightning_lscore.__all__)
def test_public_names_resolve(name):
    """Each is there, is listed by dir, and knows its module."""
    public = getattr(lightning_lscore, name)
    assert name in dir(lightning_lscore)
    assert public.__module__.startswith("lightning_lscore")
    assert public.__doc__


def test_a_star_import_gives_the_public_names():
    """The lazy ones too."""
    names = {}
    exec("from lightning_lscore import *", names)
    assert set(lightning_lscore.__all__) <= names.keys()


def test_a_name_that_does_not_exist_is_an_attribute_error():
    """As with any module, so that hasattr works."""
    with pytest.raises(AttributeError, match=r"'lightning_lscore' has no attribute 'Missing'"):
        _ = lightning_lscore.Missing


def test_the_package_says_that_it_is_typed():
    """Type checkers look for this file."""
    assert (ROOT / "lightning_lscore" / "py.typed").is_file()
