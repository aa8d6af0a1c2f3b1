from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lightning_lscore

MODULES = [
    "lightning_lscore",
    *(
        info.name
        for info in pkgutil.walk_packages(lightning_lscore.__path__, "lightning_lscore.")
        if not info.name.endswith("__main__")
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name):
    """What a docstring shows is what happens."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    """The test above would pass without any."""
    tests = doctest.DocTestFinder().find(
        importlib.import_module("lightning_lscore.equation.formula")
    )
    assert sum(len(test.examples) for test in tests) >= 3
