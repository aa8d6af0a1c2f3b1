"""LScore and CostEarlyStopping out of the YAML of LightningCLI, whatever their arguments are."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import json
import os
import sys
import types
import typing
from typing import Any

import pytest
import yaml
from conftest import PlainLM
from lightning.pytorch.cli import LightningCLI

from lightning_lscore import CostEarlyStopping, Factor, Formula, LScore

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Lightning and the parser

STUDY = Formula(
    D=Factor("tokens_to_level", 1e6, 0.05, level=20.0),
    A=0.9,
    H=Factor("device_hours", 1, 0.05, idle_price=2.0),
    T="nominal_perplexity",
    origin="a study",
)


def price(measurements: Any) -> float:
    """A factor, of which a configuration holds the dotted path."""
    return 2.0


BY_CLASS_PATH = {
    "class_path": "lightning_lscore.Formula",
    "init_args": {
        "D": {
            "class_path": "lightning_lscore.Factor",
            "init_args": {"measure": "tokens", "reference": 500},
        }
    },
}
FORMULAS = [
    ("study.json", STUDY),
    (STUDY.to_dict(), STUDY),
    (BY_CLASS_PATH, Formula(D=Factor("tokens", 500))),
    ({"A": {"measure": "tokens", "reference": 500}}, Formula(A=Factor("tokens", 500))),
    ({"H": f"{__name__}.price"}, Formula(H=price)),
]


class Tokenizer:
    """Made by its class_path, with an argument."""

    def __init__(self, size: int = 1) -> None:
        self.size = size

    def __call__(self, ids: Any) -> int:
        return self.size * len(ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and other.size == self.size


# Where any value of the type is not good enough.
OF_NAME = {
    "formula": FORMULAS,
    "monitor": [("strict_L", "strict_L")],
    "budget": [({"cost": 5, "tokens": 1e9}, {"cost": 5, "tokens": 1e9})],
    "count_bytes": [
        ("builtins.len", len),
        (
            {"class_path": f"{__name__}.Tokenizer", "init_args": {"size": 3}},
            Tokenizer(3),
        ),
    ],
}


def examples(hint: Any) -> list[tuple[Any, Any]]:
    """What YAML may hold for an argument of this type, and what arrives."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return [example for one in inner for example in examples(one)]
    if kind is typing.Literal:
        return [(value, value) for value in inner]
    if kind is collections.abc.Callable:
        return [("builtins.len", len)]
    if kind in (collections.abc.Mapping, dict):
        return [({"name": given}, {"name": arrives}) for given, arrives in examples(inner[1])]
    if kind in (collections.abc.Sequence, list, tuple):
        return [([given], [arrives]) for given, arrives in examples(inner[0])]
    if kind is os.PathLike:
        return [("a/path", "a/path")]
    plain = {bool: True, int: 3, float: 0.5, str: "text", type(None): None}
    return [(plain[hint], plain[hint])]  # a KeyError: say above what YAML holds for it


ARGUMENTS = [
    (kind, name)
    for kind in (LScore, CostEarlyStopping)
    for name in inspect.signature(kind).parameters
]


@pytest.fixture
def arrive(monkeypatch, tmp_path):
    """Gives the command line a configuration; returns what it calls the callback with."""
    monkeypatch.setattr(sys, "argv", ["train.py"])  # else it complains of the tests' own
    monkeypatch.chdir(tmp_path)
    STUDY.save("study.json")
    calls = []

    def arrive(kind, arguments):
        made = kind.__init__

        @functools.wraps(made)
        def noted(self, *args, **kwargs):
            calls.append(kwargs)
            made(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "__init__", noted)
            cli = LightningCLI(
                PlainLM,
                run=False,
                save_config_callback=None,
                args=arguments,
                parser_kwargs={"exit_on_error": False},
            )
        return cli, calls[-1]

    return arrive


def configuration(kind: type, **arguments: Any) -> dict[str, Any]:
    callback = {"class_path": f"lightning_lscore.{kind.__name__}", "init_args": arguments}
    trainer = {"accelerator": "cpu", "logger": False, "callbacks": [callback]}
    return {"seed_everything": 0, "trainer": trainer}


@pytest.mark.parametrize(("kind", "name"), ARGUMENTS)
def test_every_argument_comes_out_of_yaml_and_of_what_print_config_prints(
    kind, name, arrive, tmp_path
):
    """As a path, inline or by class_path, whatever its type allows."""
    hints = typing.get_type_hints(kind.__init__)
    for given, expected in OF_NAME.get(name) or examples(hints[name]):
        cli, arrived = arrive(kind, configuration(kind, **{name: given}))
        assert arrived[name] == expected
        printed = tmp_path / "printed.yaml"
        printed.write_text(cli.parser.dump(cli.config))  # as --print_config does
        assert arrive(kind, ["--config", str(printed)])[1][name] == expected


def test_the_path_of_a_formula_may_be_given_on_the_command_line(arrive):
    _, arrived = arrive(
        LScore,
        [
            "--seed_everything=0",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            "--trainer.callbacks+=lightning_lscore.LScore",
            "--trainer.callbacks.formula=study.json",
        ],
    )
    assert arrived["formula"] == STUDY


def test_a_saved_formula_is_yaml_of_the_class():
    """Its marker is an argument of the class, and of another schema an error."""
    assert Formula(**{**yaml.safe_load(json.dumps(Formula().to_dict()))}) == Formula()
    with pytest.raises(ValueError, match="expected lscore_formula 1, got 2"):
        Formula(lscore_formula=2)
