from __future__ import annotations

import math

import pytest
from made_up_runs import chinchilla, quick, runs

from lightning_lscore.equation.law import compute_optimal_tokens

np = pytest.importorskip("numpy")


def least_compute(loss):
    """6·N·D of the smallest run of the law with this loss, by search."""
    best = math.inf
    for N in np.geomspace(1e7, 1e10, 3001):
        rest = loss - 1.8172 - 482.01 / N**0.3478
        if rest > 0:
            best = min(best, 6 * N * (2085.43 / rest) ** (1 / 0.3658))
    return best


@pytest.mark.parametrize("loss", [2.9, 3.2, 3.5])
def test_the_gain_of_a_run_is_the_laws_least_compute_over_its_own(loss):
    """On runs that obey the law, and whatever the run spent."""
    law = quick(*runs()).law
    for spent in (1e18, 3e19):
        gain = law.gain(loss, spent)
        assert gain.low <= gain.factor <= gain.high
        assert gain.factor == pytest.approx(least_compute(loss) / spent, rel=0.1)
    N = 1.2e8
    D = compute_optimal_tokens(N)
    assert law.gain(chinchilla(N, D), 6 * N * D).factor == pytest.approx(1, abs=0.01)


def test_a_perplexity_that_the_runs_do_not_cover_is_refused():
    """Neither beyond the largest run, below the law's floor, nor before the smallest."""
    law = quick(*runs()).law
    for loss in (1.0, 2.0, 9.0):
        with pytest.raises(ValueError, match=r"expected a perplexity that the law's runs cover"):
            law.gain(loss, 1e18)


def test_more_runs_make_the_interval_narrower():
    wide = quick(*runs(sizes=[2e7, 7e8], ratios=[5, 160])).law.gain(3.2, 1e18)
    narrow = quick(*runs()).law.gain(3.2, 1e18)
    assert narrow.high / narrow.low < wide.high / wide.low
