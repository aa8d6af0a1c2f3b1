from __future__ import annotations

import pytest
from made_up_curves import power_law

from lightning_lscore.curve.bent_line import fit_line
from lightning_lscore.curve.extrapolation import EXPONENTS, exponents_of_the_past, newest_stretch
from lightning_lscore.curve.points import points_of


def test_stretches_of_about_one_doubling_back_are_the_best_evidence():
    """A short way averages over little, and a long one is out of date."""
    points = points_of(range(1, 101), power_law(range(1, 101)))
    here = {q: fit_line(newest_stretch(points), q) for q in EXPONENTS}
    q, variance, new = zip(*exponents_of_the_past(points, here, 0.0, 0.5), strict=True)
    assert q == pytest.approx([-0.4] * len(q), abs=0.1)
    assert new == pytest.approx([0.5] * len(q), abs=0.1)
    assert variance.index(min(variance)) == 1
    assert variance[0] > 1.15 * variance[1]
    assert variance[-1] > 1.15 * variance[1]
