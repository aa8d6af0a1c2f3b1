from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.measures import MEASURES

SIGNED = {"nll", "elasticity", "elasticity_needed"}
UNBOUNDED = {"nll", "perplexity", "nominal_perplexity"}


@given(st.floats(-700, 700))
def test_nll_alone_gives_the_perplexity(nll):
    """A perplexity that was not given is exp of the NLL."""
    assert Measurements(nll=nll).perplexity == math.exp(nll)


@given(st.floats(1e-300, 1e300))
def test_perplexity_alone_gives_the_nll(perplexity):
    """An NLL that was not given is ln of the perplexity."""
    assert Measurements(perplexity=perplexity).nll == math.log(perplexity)


def test_both_are_kept_as_given():
    """Neither of perplexity and NLL is made anew when both were given."""
    both = Measurements(perplexity=math.inf, nll=800.0)
    assert (both.perplexity, both.nll) == (math.inf, 800.0)


@pytest.mark.parametrize(
    ("nll", "perplexity"), [(709.0, math.exp(709)), (710.0, math.inf), (math.inf, math.inf)]
)
def test_perplexity_beyond_a_float_is_infinite(nll, perplexity):
    """An NLL past 709 nats overflows to infinity without an exception, and is kept itself."""
    m = Measurements(nll=nll)
    assert (m.nll, m.perplexity) == (nll, perplexity)


def test_nan_stays_nan_in_both_directions():
    """NaN is neither a number nor missing: perplexity and NLL are both NaN."""
    assert math.isnan(Measurements(nll=math.nan).perplexity)
    assert math.isnan(Measurements(perplexity=math.nan).nll)


def test_perplexity_of_zero_has_an_nll_of_minus_infinity():
    """The lower limit of perplexity raises no domain error."""
    assert Measurements(perplexity=0.0).nll == -math.inf


def test_nothing_measured_is_none_and_never_zero():
    """Every measure of an empty record is None."""
    empty = Measurements()
    assert empty.measured() == {}
    assert {empty.get(name) for name in MEASURES} == {None}


@pytest.mark.parametrize("measure", MEASURES)
def test_zero_counts_as_measured(measure):
    """A measured 0 differs from a missing value."""
    assert Measurements.of({measure: 0}).measured()[measure] == 0


@pytest.mark.parametrize("measure", ["perplexity", "tokens", "elasticity"])
@pytest.mark.parametrize("value", ["1", b"1", True, False, [1], {}, 1j, object()])
def test_values_that_are_no_numbers_are_refused(measure, value):
    """The error names the measure, and says to leave out what was not measured."""
    with pytest.raises(ValueError, match=rf"Measurements\.{measure}: expected.*Leave out"):
        Measurements(**{measure: value})


@pytest.mark.parametrize("measure", sorted(MEASURES.keys() - UNBOUNDED))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(measure, value):
    """Only perplexity and NLL may be NaN or infinite."""
    name = measure.removesuffix("_to_level")
    with pytest.raises(ValueError, match=rf"Measurements\.{name}: expected a finite number"):
        Measurements.of({measure: value})


@pytest.mark.parametrize("measure", ["perplexity", "nll", "tokens", "elasticity"])
def test_integers_beyond_a_float_are_refused(measure):
    """json.loads makes such integers, and float() raises an OverflowError for them."""
    with pytest.raises(ValueError, match=rf"Measurements\.{measure}: expected"):
        Measurements(**{measure: 10**400})


@pytest.mark.parametrize("measure", sorted(MEASURES.keys() - SIGNED))
@pytest.mark.parametrize("value", [-1, -1e-300, -math.inf])
def test_negative_amounts_are_refused(measure, value):
    """No amount is below 0."""
    name = measure.removesuffix("_to_level")
    with pytest.raises(ValueError, match=rf"Measurements\.{name}: expected a finite number >="):
        Measurements.of({measure: value})


@pytest.mark.parametrize("measure", sorted(SIGNED))
def test_signed_measures_may_be_negative(measure):
    """An NLL rounds below 0, and an elasticity is negative where spending helps."""
    assert Measurements(**{measure: -0.5}).get(measure) == -0.5


def test_the_record_is_frozen_and_keyword_only():
    """A stage cannot change what an earlier one measured, nor mix measures up by position."""
    m = Measurements(tokens=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        m.tokens = 2
    with pytest.raises(TypeError):
        Measurements(1.0)


def test_the_perplexity_of_a_nominal_token_follows_from_bits_per_byte():
    """exp(4 x nats per byte); beyond a float it is infinite."""
    assert Measurements(bits_per_byte=1.0).nominal_perplexity == pytest.approx(2**4)
    assert Measurements(bits_per_byte=1e4).nominal_perplexity == math.inf
    assert Measurements().nominal_perplexity is None


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", None])
def test_own_measures_are_checked_like_the_others(value):
    """By name."""
    assert Measurements(own={"learning_rate": 1}).own == {"learning_rate": 1}
    with pytest.raises(ValueError, match=r"Measurements\.learning_rate: expected"):
        Measurements(own={"learning_rate": value})


def test_what_is_measured_comes_back_from_one_flat_dictionary():
    """The spending to a level among it; what no measure is called is passed over."""
    m = Measurements(tokens=9, nll=1.0, level=3.0, to_level={"tokens": 5}, own={"a": 1})
    flat = m.measured()
    assert flat["tokens_to_level"] == 5
    assert Measurements.of({**flat, "later": 1}, level=3.0, own={"a": 1}) == m


def test_why_missing_gives_the_reason_or_says_that_there_is_none():
    """Each missing measure can be explained."""
    m = Measurements(provenance={"energy_kwh": "unavailable: no counter"})
    assert m.why_missing("energy_kwh") == "unavailable: no counter"
    assert m.why_missing("tokens") == "unavailable: not measured"
