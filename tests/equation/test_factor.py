from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.measures import MEASURES

WEIGHTS = st.floats(0, 10)
SOFTNESS = st.floats(0, 100)
ANY_SIZE = st.floats(0, 1e300) | st.floats(0, 10)
HUGE = pytest.param(10**400, id="10**400")  # json.loads makes such integers; float() refuses them
BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1, True, "1", b"1", None, [1], {}, 1j, HUGE]


def factor(weight, c=None, reference=1.0, measure="device_hours"):
    return Factor(measure, reference=reference, weight=weight, c=c)


@given(WEIGHTS, SOFTNESS, st.floats(1e-300, 1e300))
def test_the_reference_charges_exactly_nothing(w, c, reference):
    """f(1) is 1.0 to the last bit, by number and by measurement."""
    f = factor(w, c, reference)
    assert f.f(1.0) == 1.0
    assert f(Measurements(device_hours=reference)) == 1.0


@given(st.integers(1, 10**25))
def test_a_count_equal_to_its_reference_charges_exactly_nothing(count):
    """Integers beyond 2^53 compare equal to themselves."""
    assert Factor("tokens", count, weight=0.5)(Measurements(tokens=count)) == 1.0


@given(st.floats(1e-3, 10), st.floats(0, 1e6))
def test_the_weight_is_the_elasticity_at_the_reference(w, c):
    """d ln f / d ln x at 1 is w for every c."""
    h, f = 1e-5, factor(w, c)
    slope = (f.ln_f(1 + h) - f.ln_f(1 - h)) / (math.log1p(h) - math.log1p(-h))
    assert slope == pytest.approx(w, rel=1e-6)


@given(st.floats(0, 2), st.floats(0, 20), st.floats(1e-6, 1e6))
def test_a_factor_is_the_equation(w, c, x):
    """f agrees with the equation as the README prints it."""
    expected = ((c + x) / (c + 1)) ** (w * (1 + c))
    assert factor(w, c).f(x) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0.01, 5), st.floats(0, 20), st.floats(0, 1e6), st.floats(1.001, 1e3))
def test_a_factor_grows_with_its_measure(w, c, x, more):
    """More of a measure is charged more, strictly."""
    larger = x * more if x > 1e-3 else x + 1e-3 * more
    assert factor(w, c).ln_f(x) < factor(w, c).ln_f(larger)


@given(WEIGHTS, SOFTNESS, ANY_SIZE, ANY_SIZE)
def test_a_factor_never_falls_even_by_rounding(w, c, x, y):
    """Neighbouring amounts differ in the right direction, but for the last bits."""
    low, high = sorted((factor(w, c).ln_f(min(x, y)), factor(w, c).ln_f(max(x, y))))
    assert factor(w, c).ln_f(min(x, y)) <= high
    assert factor(w, c).ln_f(max(x, y)) >= low - 1e-12 * abs(low)


@given(st.floats(1e-6, 10), SOFTNESS)
def test_below_the_reference_a_factor_is_below_one(w, c):
    """Half the reference costs less than 1, twice the reference more."""
    assert factor(w, c).f(0.5) < 1 < factor(w, c).f(2.0)


@given(SOFTNESS, ANY_SIZE)
def test_a_weight_of_zero_is_exactly_one(c, x):
    """A factor that is switched off is 1.0 whatever was measured, and when nothing was."""
    off = factor(0, c)
    assert off.f(x) == 1.0
    assert off(Measurements(device_hours=x)) == 1.0
    assert off(Measurements()) == 1.0


EXTREME = st.sampled_from([0.0, 5e-324, 1e-300, 1e-17, 0.5, 1.0, 2.0, 1e17, 1e300, 1.7e308])


@given(
    ANY_SIZE | EXTREME,
    st.floats(0, 100) | st.sampled_from([5e-324, 1e-300]),
    st.floats(0, 1e6) | st.sampled_from([5e-324, 1e-300, 1e15]),
    st.floats(1e-300, 1e300),
)
@settings(max_examples=300)
def test_any_finite_amount_has_a_factor(x, w, c, reference):
    """No exception, no NaN and nothing negative for amounts, weights and softness of any size."""
    f = factor(w, c, reference)
    for value in (f.f(x), f(Measurements(device_hours=x))):
        assert value >= 0


def test_spending_of_zero_is_free_only_without_softness():
    """f(0) is 0 for c = 0 and ((c / (c + 1)) ^ (w (1 + c))) otherwise."""
    assert factor(0.1, 0).f(0.0) == 0.0
    assert factor(0.1, 1).f(0.0) == pytest.approx(0.5**0.2)


@pytest.mark.parametrize("measure", MEASURES)
def test_softness_defaults_to_what_the_measure_needs(measure):
    """c is 0 for what is fixed by the model, and 1 for what grows from 0 during a run."""
    of_the_model = ("trainable", "total", "active")
    fixed = measure in ("flops_per_token", *(f"{which}_parameters" for which in of_the_model))
    level = 20.0 if measure.endswith("_to_level") else None
    assert Factor(measure, 1.0, level=level).c == (0.0 if fixed else 1.0)


def test_a_factor_of_a_missing_measure_is_none():
    """What was not measured is not charged as 0."""
    assert factor(0.1)(Measurements()) is None


@pytest.mark.parametrize("name", ["reference", "weight", "c"])
@pytest.mark.parametrize("value", [value for value in BAD_NUMBERS if value is not None])
def test_a_factor_refuses_what_is_no_finite_amount(name, value):
    """One ValueError names the field, what was expected and what was got."""
    given_ = {"reference": 1.0, "weight": 0.1, "c": 1.0, name: value}
    with pytest.raises(ValueError, match=rf"^Factor\.{name} of 'tokens': expected a finite number"):
        Factor("tokens", **given_)


@pytest.mark.parametrize("reference", [0, 0.0, -0.0])
def test_a_reference_of_zero_is_refused(reference):
    """Nothing can be divided by the reference 0."""
    with pytest.raises(ValueError, match=r"Factor\.reference of 'tokens': .* > 0, got"):
        Factor("tokens", reference)


@pytest.mark.parametrize("measure", ["token", "", None, 3, ["tokens"], {"a": 1}])
def test_a_factor_refuses_an_unknown_measure(measure):
    """The error says which field is wrong and what the measures are."""
    with pytest.raises(ValueError, match=r"^Factor\.measure: expected a measure \(perplexity, "):
        Factor(measure, 1.0)


@pytest.mark.parametrize(("price", "charged"), [(1.0, 8.0), (0.0, 2.0), (0.5, 5.0), (3.0, 20.0)])
def test_idle_time_costs_its_price(price, charged):
    """A quarter of eight hours is busy, the rest idle."""
    m = Measurements(device_hours=8.0, busy_fraction=0.25)
    assert Factor("device_hours", 1.0, idle_price=price).priced(m) == charged


def test_an_idle_price_needs_the_busy_fraction():
    """Without it the factor is missing, and the score says which measure it lacks."""
    score = Formula(H=Factor("device_hours", 1.0, idle_price=0.5)).score(
        Measurements(perplexity=2.0, device_hours=8.0)
    )
    assert score.f_H is None
    assert [reason.split(":")[0] for reason in score.missing] == ["busy_fraction"]


def test_only_time_can_be_idle():
    """Tokens are never idle."""
    with pytest.raises(ValueError, match="expected a measure of training time"):
        Factor("tokens", 1.0, idle_price=0.5)


@pytest.mark.parametrize("name", ["tokens", "a b", "a/b", "", 3, None])
def test_a_measure_of_ones_own_needs_a_name_of_its_own(name):
    """One that loggers take, and that nothing else has."""
    with pytest.raises(ValueError, match="letters, digits and _ that no other measure has"):
        Factor(name, 1.0, own=True)
