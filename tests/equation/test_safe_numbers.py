from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.equation.safe_numbers import exp, percent, readable


@given(st.floats(allow_nan=False))
def test_exp_never_raises(nll):
    """exp agrees with math.exp wherever that does not overflow, and is infinite elsewhere."""
    try:
        expected = math.exp(nll)
    except OverflowError:
        expected = math.inf
    assert exp(nll) == expected


@given(st.floats())
def test_no_number_fills_a_line(value):
    """A sentence or a table shows any float in a few characters, and never "nan %"."""
    assert len(readable(value)) <= 14
    assert len(percent(abs(value))) <= 25
    assert "nan" not in percent(value)
