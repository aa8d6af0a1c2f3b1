from __future__ import annotations

import math

import pytest
from made_up_runs import SIZES, chinchilla, quick, runs

from lightning_lscore.curve.calibrate import calibrate

np = pytest.importorskip("numpy")


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
def test_runs_that_cannot_tell_an_elasticity_give_no_formula(N, D, what):
    c = quick(N, D, [chinchilla(n, d) for n, d in zip(N, D, strict=True)])
    (sentence,) = c.unknown
    assert what in sentence
    assert "Add runs" in sentence
    with pytest.raises(ValueError, match=f"expected runs that tell the weights.*{what}"):
        c.formula()
    assert c.e_N == pytest.approx(0.3478 * 482.01 / c.parameters**0.3478, rel=0.2)


def test_a_reference_beyond_the_runs_is_reported():
    assert any("extrapolated" in w for w in quick(*runs(), reference_parameters=1e11).warnings)


def test_a_reference_far_from_where_the_law_was_measured_gives_no_formula():
    """Not that of the default test world, which tells all."""
    assert quick(*runs()).unknown == ()
    tiny = quick(*runs(sizes=[5e5, 1e6, 2e6, 4e6]))
    assert sum("was measured on" in w for w in tiny.unknown) == 2
    assert any("5.7e+07 to 1.6e+10 parameters" in w for w in tiny.unknown)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [([0.5, 10, 20], "5 of 15 runs had fewer"), ([20, 200, 2000], "5 of 15"), ([1, 1000], None)],
)
def test_runs_of_so_few_or_many_tokens_that_the_law_fails_are_reported(ratios, said):
    warnings = [w for w in quick(*runs(ratios=ratios)).warnings if "tokens a parameter" in w]
    assert [said in w for w in warnings] == ([True] if said else [])


@pytest.mark.parametrize("reference", [1e-30, 1e300])
def test_a_senseless_reference_is_reported_and_does_not_overflow(reference):
    c = quick(*runs(), reference_parameters=reference)
    assert any("e_N is extrapolated" in w for w in c.warnings)
    assert all(math.isfinite(w) for w in (c.w_D, c.w_A, c.w_H, c.e_N_interval.high))


def test_runs_that_more_data_made_worse_weigh_nothing_and_are_reported():
    c = quick(*runs(lambda N, D: 3 + 0.5 * math.log(D / 2e9)))
    assert c.e_D == c.w_D == c.w_H == 0
    assert any("made the runs no better" in w for w in c.warnings)


@pytest.mark.parametrize(("N", "D"), [(836_736, 665_600), (7e7, 1.3e9), (123_456_789, 9.87e9)])
def test_a_single_run_is_its_own_reference_and_not_outside_of_it(N, D):
    """Whatever the logarithms of its size and length round to."""
    assert not any("lies outside" in w for w in calibrate([N], [D], [3.0]).warnings)
