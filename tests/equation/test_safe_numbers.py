from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.equation.safe_numbers import exp


@given(st.floats(allow_nan=False))
def test_exp_never_raises(nll):
    """exp agrees with math.exp wherever that does not overflow, and is infinite elsewhere."""
    try:
        expected = math.exp(nll)
    except OverflowError:
        expected = math.inf
    assert exp(nll) == expected
