from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.calibrate import Calibration, Interval, _law, calibrate
from lightning_lscore.formula import Factor
from lightning_lscore.measurements import Measurements

np = pytest.importorskip("numpy")

SIZES = [2e7, 5e7, 1.2e8, 3e8, 7e8]
TOKENS_EACH = [5, 10, 20, 40, 80, 160]


def chinchilla(N, D):
    return 1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658


def runs(loss=chinchilla, sizes=SIZES, ratios=TOKENS_EACH):
    """Parameters, tokens and losses of a grid of runs."""
    N, D = zip(*((n, n * r) for n in sizes for r in ratios), strict=True)
    return list(N), list(D), [loss(n, d) for n, d in zip(N, D, strict=True)]


def quick(*data, **options):
    return calibrate(*data, **{"resamples": 200, **options})


def test_on_runs_that_obey_the_law_it_returns_the_laws_elasticities():
    """Within 6 % over a decade; a parabola is off by 14 % where the tokens span three decades."""
    c = quick(*runs(sizes=SIZES[1:4], ratios=[10, 20, 40, 80]))
    assert c.e_N == pytest.approx(0.3478 * 482.01 / c.parameters**0.3478, rel=0.06)
    assert c.e_D == pytest.approx(0.3658 * 2085.43 / c.tokens**0.3658, rel=0.06)
    assert c.warnings == ()


def test_the_prior_is_the_laws_slope_and_curvature():
    N, D, h = 3e8, 5e9, 1e-3
    _, e_N, e_D, k_N, k_D = _law(N, D)
    for slope, curvature, of in (
        (e_N, k_N, lambda t: chinchilla(N * math.exp(t), D)),
        (e_D, k_D, lambda t: chinchilla(N, D * math.exp(t))),
    ):
        assert slope == pytest.approx(-(of(h) - of(-h)) / (2 * h), rel=1e-4)
        assert curvature == pytest.approx((of(h) - 2 * of(0) + of(-h)) / h**2 / 2, rel=1e-4)


def test_many_runs_overrule_the_law():
    """A made-up world in which parameters buy half, and tokens three times, of what they do."""
    c = quick(
        *runs(lambda N, D: 3 - 0.14 * math.log(N / 1e8) - 0.5 * math.log(D / 2e9)),
        reference_parameters=1e8,
        reference_tokens=2e9,
    )
    assert c.e_N == pytest.approx(0.14, rel=0.15)
    assert c.e_D == pytest.approx(0.5, rel=0.15)


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
    assert c.formula().D.weight == c.w_D


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


def test_intervals_cover_the_truth_about_nine_times_in_ten():
    """The world differs from the law as the prior supposes, and runs scatter by 0.1 nats, as public
    ones do about a parabola. (With less they hold it more often.)
    """
    random, covered, worlds = np.random.default_rng(0), 0, 150
    for _ in range(worlds):
        n_rate, d_rate = 0.277 * (1 + 0.25 * random.standard_normal(2))
        N = np.exp(random.normal(math.log(1e8), 1, 8))
        D = np.exp(random.normal(math.log(2.5e9), 1, 8))
        u, v = np.log(N / 1e8), np.log(D / 2.5e9)
        loss = 3.4 - n_rate * u - d_rate * v + 0.048 * u**2 + 0.05 * v**2
        loss += 0.1 * random.standard_normal(8)
        c = quick(N, D, loss, reference_parameters=1e8, reference_tokens=2.5e9)
        covered += (n_rate in c.e_N_interval) + (d_rate in c.e_D_interval)
    assert 0.85 <= covered / (2 * worlds) <= 0.98


def test_more_runs_narrow_the_interval():
    def width(c):
        return c.e_D_interval.high - c.e_D_interval.low

    few, many = quick(*runs(sizes=SIZES[1:3], ratios=[20, 40])), quick(*runs())
    assert width(many) < width(few)


def test_few_runs_are_said_to_be_few():
    c = quick(*runs(sizes=SIZES[:2], ratios=[20, 80]))
    assert c.runs == 4
    assert any("Only 4 distinct runs" in w for w in c.warnings)


@pytest.mark.parametrize(
    ("N", "D", "what"),
    [
        ([1e8] * 12, [1e9 * 1.5**i for i in range(12)], "number of parameters varies"),
        ([1e7 * 1.5**i for i in range(12)], [1e9] * 12, "number of tokens varies"),
        ([1e7 * 1.5**i for i in range(12)], [2e8 * 1.5**i for i in range(12)], "grew together"),
    ],
)
def test_runs_that_cannot_tell_an_elasticity_are_reported(N, D, what):
    c = quick(N, D, [chinchilla(n, d) for n, d in zip(N, D, strict=True)])
    assert any(what in w for w in c.warnings)
    assert c.e_N == pytest.approx(0.3478 * 482.01 / c.parameters**0.3478, rel=0.2)


def test_a_reference_beyond_the_runs_is_reported():
    assert any("extrapolated" in w for w in quick(*runs(), reference_parameters=1e11).warnings)


def test_runs_that_more_data_made_worse_weigh_nothing_and_are_reported():
    c = quick(*runs(lambda N, D: 3 + 0.5 * math.log(D / 2e9)))
    assert c.e_D == c.w_D == c.w_H == 0
    assert any("made the runs no better" in w for w in c.warnings)


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


def test_it_is_frozen_and_an_interval_knows_its_members():
    c = quick(*runs())
    assert isinstance(c, Calibration)
    with pytest.raises(AttributeError):
        c.w_D = 0.1
    assert 0.5 in Interval(low=0, high=1)
    assert 2 not in Interval(low=0, high=1)


def test_without_numpy_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-lscore\[calibrate\]'"):
        calibrate([1e8], [1e9], [3.0])
