from __future__ import annotations

import math

import pytest
from made_up_runs import quick, runs

from lightning_lscore.curve.calibration import Calibration, Interval
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.measurements import Measurements

np = pytest.importorskip("numpy")


def test_its_formula_charges_nothing_at_the_reference():
    c = quick(*runs())
    formula = c.formula(parameters=1e8, tokens=2e9)
    assert Factor("capacity_flops", 6 * 1e8 * 2e9 / 0.4, c.w_H) == formula.H
    spent = Measurements(
        nll=3.0,
        tokens=2 * 10**9,
        trainable_parameters=10**8,
        capacity_flops=6 * 1e8 * 2e9 / 0.4,
    )
    assert pytest.approx(math.exp(3)) == formula.score(spent).L
    assert c.formula().D.reference == c.tokens
    assert "30 finished runs" in formula.origin


def test_it_is_frozen_and_an_interval_knows_its_members():
    c = quick(*runs())
    assert isinstance(c, Calibration)
    with pytest.raises(AttributeError):
        c.w_D = 0.1
    assert 0.5 in Interval(low=0, high=1)
    assert 2 not in Interval(low=0, high=1)
