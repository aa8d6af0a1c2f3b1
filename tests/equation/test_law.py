from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.equation.law import compute_optimal_tokens


@pytest.mark.parametrize(("parameters", "tokens"), [(1e8, 2.5e9), (1e9, 2.3e10)])
def test_compute_optimal_tokens_agree_with_the_published_law(parameters, tokens):
    """Two points of the law, to the digits that the design states."""
    assert float(f"{compute_optimal_tokens(parameters):.1e}") == tokens


@given(st.floats(0, 1e15))
def test_compute_optimal_tokens_solve_their_equation(parameters):
    """beta·B·D^-beta = alpha·A·N^-alpha, and no size is too small."""
    tokens = compute_optimal_tokens(parameters)
    left = 0.3658 * 2085.43 * tokens**-0.3658
    right = 0.3478 * 482.01 * max(parameters, 1) ** -0.3478
    assert left == pytest.approx(right, rel=1e-9)
