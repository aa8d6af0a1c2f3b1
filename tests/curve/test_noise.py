from __future__ import annotations

import math
import random
from statistics import mean

import pytest

from lightning_lscore.curve.noise import scatter_of_curve, scatter_of_rates, scatter_of_repeats


def test_noise_is_found_on_a_curve_that_bends():
    """A bend has second differences of its own, and hardly any third ones."""
    rng = random.Random(0)
    found = [
        scatter_of_curve([3 + 4 / (i + 3) + rng.gauss(0, 0.002) for i in range(5, 40)])
        for _ in range(200)
    ]
    assert mean(found) == pytest.approx(0.002, rel=0.1)
    smooth = scatter_of_curve([3 + 4 / (i + 3) for i in range(5, 40)])
    assert smooth < 1e-4


def test_a_short_curve_cannot_tell_its_noise():
    """NaN and infinity do not count."""
    assert scatter_of_curve([3.0, 2.9, 2.8, 2.7]) is None
    assert scatter_of_curve([3.0, math.nan, 2.9, math.inf, 2.8, 2.7]) is None
    assert scatter_of_curve([3.0, 2.9, 2.8, 2.7, 2.6]) == pytest.approx(0, abs=1e-12)


def test_repeats_are_pooled_about_the_mean_of_each_group():
    """Groups of one tell nothing."""
    assert scatter_of_repeats([[1.0, 3.0], [10.0, 12.0], [5.0]]) == pytest.approx(math.sqrt(2))
    assert scatter_of_repeats([[1.0], []]) is None


def test_the_rate_of_a_run_scatters_about_its_median():
    """One stretch that stalled counts little; a counter that stands still not at all."""
    done = [float(i) for i in range(12)]
    even = scatter_of_rates([2.0 * i for i in done], done)
    assert even == pytest.approx(0, abs=1e-12)
    spent, rng = [0.0], random.Random(1)
    for _ in range(400):
        spent.append(spent[-1] + math.exp(rng.gauss(0, 0.1)))
    assert scatter_of_rates(spent, [float(i) for i in range(401)]) == pytest.approx(0.1, rel=0.15)
    assert scatter_of_rates([0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 1.0, 2.0]) is None
