"""LScore by an environment variable."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import lightning.pytorch
import pytest
import pytorch_lightning

from lightning_lscore import Factor, Formula, LScore
from lightning_lscore.factory import callbacks

GROUPS = ["lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory"]


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((no, 0) for no in (None, "", "0", "false", "No", "OFF", " ")),
        *((yes, 1) for yes in ("1", "true", "Yes", "ON")),
    ],
)
def test_a_trainer_has_an_lscore_where_the_variable_asks_for_it(
    package, value, expected, monkeypatch, tmp_path
):
    """Through the installed entry points of either package, and not without it."""
    if value is None:
        monkeypatch.delenv("LSCORE", raising=False)
    else:
        monkeypatch.setenv("LSCORE", value)
    options = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path}
    trainer = package.Trainer(enable_checkpointing=False, **options)
    assert sum(isinstance(c, LScore) for c in trainer.callbacks) == expected


def test_the_variable_may_name_a_formula(monkeypatch, tmp_path):
    formula = Formula(D=Factor("tokens", 1e6))
    formula.save(tmp_path / "study.json")
    monkeypatch.setenv("LSCORE", str(tmp_path / "study.json"))
    (lscore,) = callbacks()
    assert lscore.formula == formula


@pytest.mark.parametrize(
    ("value", "error"), [("nowhere.json", FileNotFoundError), ("other.json", ValueError)]
)
def test_a_path_that_holds_no_formula_is_an_error_that_names_the_variable(
    value, error, monkeypatch, tmp_path
):
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.setenv("LSCORE", str(tmp_path / value))
    with pytest.raises(error, match=rf"LSCORE: expected .*{value}"):
        callbacks()


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
def test_a_list_of_callbacks_may_be_used_again_and_have_an_lscore_of_its_own(
    package, monkeypatch, tmp_path
):
    """What is given is put into that very list, by the Trainers of either package."""
    monkeypatch.setenv("LSCORE", "1")
    options = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path}
    for mine in ([package.callbacks.Timer()], [LScore()]):
        for _ in range(2):
            trainer = package.Trainer(callbacks=mine, enable_checkpointing=False, **options)
        every = [c for c in trainer.callbacks if isinstance(c, LScore)]
        assert len(every) >= 2
        assert len({c.state_key for c in every}) == len(every)


@pytest.mark.parametrize("group", GROUPS)
def test_without_the_variable_nothing_heavy_is_imported(group):
    """Every Trainer of every program of the environment asks."""
    (point,) = entry_points(group=group, name="lscore")
    code = (
        f"import importlib, sys; f = getattr(importlib.import_module({point.module!r}), "
        f"{point.attr!r}); assert f() == []; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={})
    assert (done.returncode, done.stderr) == (0, "")
