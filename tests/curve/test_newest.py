from __future__ import annotations

import random

import pytest

from lightning_lscore.curve.newest import falls_faster, scatter


def test_a_bend_is_no_noise():
    """Second differences take it for noise, which is most of them in a young run."""
    bent = [4 + 3 / (3 + i) ** 0.5 for i in range(12)]
    assert scatter(bent)[0] < 0.002
    normal = random.Random(0)
    found = [scatter([y + normal.gauss(0, 0.02) for y in bent])[0] for _ in range(300)]
    assert sum(found) / len(found) == pytest.approx(0.02, rel=0.15)


def test_too_few_validations_have_no_noise():
    assert scatter([]) == scatter([3.0, 2.0, 4.0]) == (0.0, 0)
    assert scatter([3.0, 2.0, 4.0, 1.0])[1] == 1


@pytest.mark.parametrize(
    ("ln_T", "faster"),
    [
        ([3.0, 3.0, 2.9], True),
        ([3.0, 2.9, 2.8], False),
        ([3.0, 2.8, 2.7], False),
        ([3.0, 3.1, 3.0], True),
        ([3.0, 3.1, 3.3], False),
        ([3.0], False),
    ],
)
def test_a_loss_falls_faster_where_its_newer_half_fell_by_more(ln_T, faster):
    assert falls_faster(ln_T, 2, noise=0.0) is faster
    assert not falls_faster(ln_T, 2, noise=0.1)
    assert not falls_faster(ln_T, 1, noise=0.0)
