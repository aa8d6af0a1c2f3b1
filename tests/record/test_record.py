from __future__ import annotations

from dataclasses import replace

import pytest
from samples import FORMULA, record

from lightning_lscore.equation.formula import Formula
from lightning_lscore.record.comparable import rescored


def test_loggers_get_what_has_a_value():
    """What was not measured or scored has no key, and each measure is under lscore/."""
    assert record().logged_values() == {
        "perplexity": 5.0,
        "lscore/best_L_expected": 4.0,
        "f_D": record().score.f_D,
        "f_A": 0.5,
        "lscore/tokens": 100,
    }


def test_a_record_is_scored_again_under_another_formula():
    """The measurements are all that a new score needs."""
    (again,) = rescored([record(perplexity=20.0)], Formula(D=0.5))
    assert again.L == 10.0
    assert Formula.from_dict(record().formula) == FORMULA


def test_records_are_frozen():
    """Readers cannot change what was written by accident."""
    with pytest.raises(AttributeError):
        record().step = 3
    assert replace(record(), step=3).step == 3
