from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import AT, SIZES, chinchilla, quick, runs, world

from lightning_lscore.curve.calibrate import calibrate
from lightning_lscore.curve.posterior import elasticities_of_the_law

np = pytest.importorskip("numpy")


def test_on_runs_that_obey_the_law_it_returns_the_laws_elasticities():
    c = quick(*runs())
    assert c.e_N == pytest.approx(0.3478 * 482.01 / c.parameters**0.3478, rel=0.01)
    assert c.e_D == pytest.approx(0.3658 * 2085.43 / c.tokens**0.3658, rel=0.01)
    assert c.warnings == ()


def test_the_prior_is_the_laws_slope():
    N, D, h = 3e8, 5e9, 1e-3
    for slope, of in (
        (elasticities_of_the_law(N, D)[0], lambda t: chinchilla(N * math.exp(t), D)),
        (elasticities_of_the_law(N, D)[1], lambda t: chinchilla(N, D * math.exp(t))),
    ):
        assert slope == pytest.approx(-(of(h) - of(-h)) / (2 * h), rel=1e-4)


def test_one_run_tells_nothing_so_the_prior_remains():
    c = quick([3e8], [5e9], [2.9], resamples=4000)
    assert (c.e_N, c.e_D) == pytest.approx(tuple(elasticities_of_the_law(3e8, 5e9)), rel=1e-6)
    for e, interval in ((c.e_N, c.e_N_interval), (c.e_D, c.e_D_interval)):
        assert interval.high - interval.low == pytest.approx(2 * 1.645 * 0.25 * e, rel=0.05)


def test_many_runs_overrule_theelasticities_of_the_law():
    """A made-up world in which parameters buy half, and tokens nearly twice, of what they do."""
    c = quick(*runs(world(0.14, 0.5, alpha=0.2, beta=0.55)), **AT)
    assert c.e_N == pytest.approx(0.14, rel=0.03)
    assert c.e_D == pytest.approx(0.5, rel=0.03)


def test_what_runs_say_of_tokens_carries_over_to_parameters():
    """Text that is harder to predict raises both: tokens alone inform about parameters too."""
    D = [1e9, 2e9, 4e9, 8e9]
    c = quick([1e8] * 4, D, [world(0.277, 0.5)(1e8, d) for d in D], **AT)
    assert c.e_N > 1.1 * elasticities_of_the_law(1e8, 2e9)[0]


def test_a_run_that_went_wrong_hardly_counts():
    N, D, loss = runs()
    spoilt = loss.copy()
    spoilt[0] += 1
    fine, c = quick(N, D, loss), quick(N, D, spoilt)
    assert (c.e_N, c.e_D) == pytest.approx((fine.e_N, fine.e_D), rel=0.01)


def test_the_scatter_is_that_of_the_runs():
    """Student's t with 4 degrees of freedom has a standard deviation of sqrt(2) times its scale."""
    random = np.random.default_rng(0)
    sizes = list(np.geomspace(2e7, 7e8, 15))
    c = quick(*runs(world(0.28, 0.3, noise=lambda: 0.02 * random.standard_t(4)), sizes=sizes))
    assert c.scatter == pytest.approx(0.02 * math.sqrt(2), rel=0.2)


def test_the_weights_add_up_to_the_elasticities():
    for share in (0.0, 0.5, 1.0):
        c = quick(*runs(), share=share)
        assert c.w_A + c.w_H == pytest.approx(c.e_N)
        assert c.w_D + c.w_H == pytest.approx(c.e_D)
        assert c.w_H == pytest.approx(share * min(c.e_N, c.e_D))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1e6, 1e11), st.floats(1e7, 1e13), st.floats(0.5, 12)),
        min_size=1,
        max_size=25,
    )
)
def test_whatever_the_runs_weights_are_usable_and_inside_of_ordered_intervals(data):
    N, D, loss = zip(*data, strict=True)
    c = calibrate(N, D, loss, resamples=100)
    for name in ("w_D", "w_A", "w_H", "e_N", "e_D"):
        interval = getattr(c, f"{name}_interval")
        assert 0 <= getattr(c, name) < math.inf
        assert 0 <= interval.low <= interval.high < math.inf
    assert replace(c, unknown=()).formula().D.weight == c.w_D


@given(st.floats(0.01, 100))
@settings(max_examples=10, deadline=None)
def test_the_level_of_the_loss_does_not_matter(shift):
    """Another tokenizer or text shifts every loss; the rates stay."""
    N, D, loss = runs()
    one, other = quick(N, D, loss), quick(N, D, [y + shift for y in loss])
    assert other.e_N == pytest.approx(one.e_N, rel=1e-6)
    assert other.e_D_interval.high == pytest.approx(one.e_D_interval.high, rel=1e-6)


def test_the_order_of_the_runs_and_worse_repeats_do_not_matter():
    N, D, loss = runs()
    again = quick([*N, N[3]], [*D, D[3]], [*loss, loss[3] + 1])
    assert again == quick(N, D, loss)
    back = quick(N[::-1], D[::-1], loss[::-1])
    assert (back.e_N, back.e_D) == pytest.approx((quick(N, D, loss).e_N, quick(N, D, loss).e_D))


def test_the_same_seed_gives_the_same_intervals():
    assert quick(*runs()) == quick(*runs())
    assert quick(*runs(), seed=1).e_N_interval != quick(*runs()).e_N_interval


@pytest.mark.parametrize("count", [4, 20])
def test_intervals_hold_the_truth_nine_times_in_ten(count):
    """In worlds drawn by the prior. Of 300 intervals at 90 % seldom fewer than 85 or more than 95 %
    hold.
    """
    random, held, worlds = np.random.default_rng(0), 0, 150
    for _ in range(worlds):
        both, N_only, D_only = 0.25 * math.sqrt(0.5) * random.standard_normal(3)
        e_N, e_D = elasticities_of_the_law(1e8, 2e9) * (1 + both + np.array([N_only, D_only]))
        alpha, beta = 0.36 * np.exp(0.45 * random.standard_normal(2))
        scale = 0.05 * math.exp(random.standard_normal())
        N = np.exp(random.normal(math.log(1e8), 1, count))
        D = np.exp(random.normal(math.log(2e9), 1, count))
        law = world(e_N, e_D, alpha, beta, noise=lambda s=scale: s * random.standard_t(4))
        c = quick(N, D, [max(law(n, d), 0.1) for n, d in zip(N, D, strict=True)], **AT)
        held += (e_N in c.e_N_interval) + (e_D in c.e_D_interval)
    assert 0.85 <= held / (2 * worlds) <= 0.95


def test_more_runs_narrow_the_interval():
    def width(c):
        return c.e_D_interval.high - c.e_D_interval.low

    few, many = quick(*runs(sizes=SIZES[1:3], ratios=[20, 40])), quick(*runs())
    assert width(many) < width(few)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (([], [], []), {}, "at least one run"),
        (([1e8], [1e9, 2e9], [3.0]), {}, "got 1 parameters, 2 tokens, 1 loss"),
        (([1e8, 0], [1e9, 1e9], [3.0, 3.0]), {}, "parameters: expected finite numbers > 0"),
        (([1e8], [math.inf], [3.0]), {}, "tokens: expected finite numbers > 0"),
        (([1e8], [1e9], [math.nan]), {}, "Leave out runs that diverged"),
        ((["x"], [1e9], [3.0]), {}, "parameters: expected one number a run"),
        (([[1e8]], [1e9], [3.0]), {}, "of shape"),
        (([1e8], [1e9], [3.0]), {"share": 1.1}, "share: expected a number from 0 to 1"),
        (([1e8], [1e9], [3.0]), {"share": math.nan}, "share"),
        (([1e8], [1e9], [3.0]), {"reference_tokens": 0}, "reference_tokens: expected"),
        (([1e8], [1e9], [3.0]), {"resamples": 3}, "resamples: expected"),
    ],
)
def test_senseless_input_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(*data, **options)


def test_without_numpy_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-lscore\[calibrate\]'"):
        calibrate([1e8], [1e9], [3.0])
