from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_lscore.equation.factor import DEFAULT_WEIGHT, Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.law import (
    LAW_A,
    LAW_ALPHA,
    LAW_B,
    LAW_BETA,
    compute_optimal_tokens,
)
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.score import Score

HUGE = pytest.param(10**400, id="10**400")  # json.loads makes such integers; float() refuses them
BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1, True, "1", b"1", None, [1], {}, 1j, HUGE]

CANDIDATE = st.builds(
    Measurements,
    perplexity=st.integers(2, 40).map(float),
    tokens=st.integers(1, 20),
    trainable_parameters=st.integers(1, 20),
    capacity_flops=st.integers(1, 20).map(float),
)


@st.composite
def formulas(draw, least_weight=0.01):
    def one(measure):
        return Factor(
            measure,
            reference=draw(st.floats(0.1, 100)),
            weight=draw(st.floats(least_weight, 2)),
            c=draw(st.none() | st.floats(0, 5)),
        )

    return Formula(D=one("tokens"), A=one("trainable_parameters"), H=one("capacity_flops"))


CHARGED = ("perplexity", "tokens", "trainable_parameters", "capacity_flops")


def dominates(a, b):
    """No worse in anything that is charged, and better in something."""
    pairs = [(a.get(name), b.get(name)) for name in CHARGED]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@given(formulas(), st.lists(CANDIDATE, min_size=1, max_size=12))
def test_the_candidate_of_least_L_is_never_dominated(formula, candidates):
    """No candidate is at least as good in everything as the best one, and better in something."""
    best = min(candidates, key=lambda m: formula.score(m).L)
    assert not any(dominates(other, best) for other in candidates)


@given(formulas(), CANDIDATE, st.sampled_from(CHARGED), st.integers(1, 20))
def test_L_is_monotone_in_T_and_in_every_measure(formula, m, name, more):
    """More of anything that is charged is a higher L."""
    worse = Measurements(**{n: m.get(n) + (more if n == name else 0) for n in CHARGED})
    assert formula.score(m).L < formula.score(worse).L


@given(
    formulas(),
    CANDIDATE,
    st.floats(1e-6, 1e6),
    st.sampled_from([("D", "tokens"), ("A", "trainable_parameters"), ("H", "capacity_flops")]),
)
def test_a_unit_changed_with_its_reference_changes_nothing(formula, m, unit, which):
    """L is free of units."""
    letter, name = which
    old = getattr(formula, letter)
    parts = {x: getattr(formula, x) for x in "DAH"}
    parts[letter] = Factor(name, old.reference * unit, old.weight, old.c)
    converted = Measurements(
        **{n: m.get(n) * (unit if n == name else 1) for n in CHARGED},
    )
    assert pytest.approx(formula.score(m).L, rel=1e-11) == Formula(**parts).score(converted).L


@given(st.data(), CANDIDATE, CANDIDATE, st.floats(1e-3, 1e3))
def test_another_reference_of_a_plain_power_scales_every_L_alike(data, a, b, scale):
    """So that it changes no order; with softness it moves the point where a factor bites."""
    weight = data.draw(st.floats(0.01, 2))
    old, new = (
        Formula(D=Factor("tokens", 5.0 * k, weight, c=0), A=Factor("trainable_parameters", 3.0))
        for k in (1, scale)
    )
    ratios = [new.score(m).L / old.score(m).L for m in (a, b)]
    assert ratios == [pytest.approx(scale**-weight, rel=1e-9)] * 2


@given(formulas(), CANDIDATE)
def test_ln_L_is_the_sum_of_its_parts(formula, m):
    """ln L = NLL + ln f(D) + ln f(A) + ln f(H)."""
    s = formula.score(m)
    parts = m.nll + math.log(s.f_D) + math.log(s.f_A) + math.log(s.f_H)
    assert math.log(s.L) == pytest.approx(parts, abs=1e-12)
    assert s.f_D == formula.D(m)
    assert s.f_A == formula.A(m)
    assert s.f_H == formula.H(m)
    assert s.perplexity == m.perplexity


def test_the_worked_example():
    """20 · 0.95 · 0.90 · 0.85 = 14.535."""
    score = Formula(D=0.95, A=0.90, H=0.85).score(Measurements(perplexity=20.0))
    assert pytest.approx(14.535, rel=1e-12) == score.L
    assert (score.f_D, score.f_A, score.f_H) == (0.95, 0.90, 0.85)


def test_nothing_is_charged_by_an_empty_formula():
    """Without factors L is the perplexity."""
    assert Formula().score(Measurements(perplexity=7.5)).L == 7.5
    assert Formula().measures == ()


@given(st.floats(0, 1e300), st.floats(0, 1e300), st.floats(0, 1e300), st.floats(-1, 700))
@example(1e300, 0.0, 1e18, 141.0)  # T · f(D) overflows and f(A) is 0
def test_L_of_finite_measurements_is_never_nan(tokens, parameters, flops, nll):
    """However little or much was spent, L is a number or infinite."""
    m = Measurements(nll=nll, tokens=tokens, trainable_parameters=parameters, capacity_flops=flops)
    formula = Formula(
        D=Factor("tokens", 1e9, 0.5),
        A=Factor("trainable_parameters", 1e6, 0.5),
        H=Factor("capacity_flops", 1e18, 0.5),
    )
    assert formula.score(m).L >= 0


@pytest.mark.parametrize("perplexity", [math.nan, math.inf])
def test_a_perplexity_without_a_value_passes_into_L(perplexity):
    """NaN and infinity are not turned into numbers."""
    score = Formula(D=2.0).score(Measurements(perplexity=perplexity))
    assert perplexity == score.L or math.isnan(score.L)
    assert math.isnan(score.L) == math.isnan(perplexity)


def test_a_missing_measure_makes_L_none_and_is_named():
    """The score says what is missing and why, and keeps the factors that it has."""
    formula = Formula(D=Factor("tokens", 1e9), H=Factor("energy_kwh", 1.0))
    m = Measurements(
        perplexity=5.0, tokens=10**9, provenance={"energy_kwh": "unavailable: no counter"}
    )
    score = formula.score(m)
    assert score.L is None
    assert (score.f_D, score.f_A, score.f_H) == (1.0, 1.0, None)
    assert score.missing == ("energy_kwh: unavailable: no counter",)


def test_a_missing_perplexity_makes_L_none_and_is_named():
    """Factors alone are no L."""
    score = Formula(D=0.5).score(Measurements())
    assert score.L is None
    assert score.missing == ("perplexity: unavailable: not measured",)


def test_what_is_switched_off_is_never_missing():
    """A weight of 0 needs no measurement."""
    formula = Formula(D=Factor("tokens", 1.0, weight=0), H=Factor("energy_kwh", 1.0, weight=0))
    assert formula.measures == ()
    assert formula.score(Measurements(perplexity=3.0)) == Score(
        perplexity=3.0, f_D=1.0, f_A=1.0, f_H=1.0
    )


def test_a_factor_may_be_a_function_of_the_measurements():
    """Each score calls it."""
    formula = Formula(H=lambda m: 1 + m.train_hours)
    assert formula.score(Measurements(perplexity=10.0, train_hours=0.5)).L == 15.0


@pytest.mark.parametrize("value", [*BAD_NUMBERS, 0, 0.0])
def test_a_function_must_return_a_positive_number(value):
    """The error names the letter and shows what the function returned."""
    formula = Formula(H=lambda m: value)
    with pytest.raises(ValueError, match=r"the function given as Formula\.H: expected a finite"):
        formula.score(Measurements(perplexity=10.0))


@pytest.mark.parametrize("letter", ["D", "A", "H"])
@pytest.mark.parametrize("value", [*BAD_NUMBERS, 0, 0.0])
def test_a_formula_refuses_what_is_no_factor(letter, value):
    """Neither a Factor, nor a number > 0, nor a function: one ValueError names the letter."""
    with pytest.raises(ValueError, match=rf"^Formula\.{letter}: expected"):
        Formula(**{letter: value})


# ---------------------------------------------------------------- where it comes from


@given(st.integers(1, 10**13), st.floats(1, 1e16), st.floats(1, 1e6))
def test_at_the_end_of_its_plan_L_is_the_perplexity(parameters, tokens, perplexity):
    """All parameters trained, on the planned tokens, at 40 % of peak: every factor is 1."""
    formula = Formula.for_plan(parameters=parameters, tokens=tokens)
    end = Measurements(
        perplexity=perplexity,
        tokens=tokens,
        trainable_parameters=parameters,
        capacity_flops=6 * parameters * tokens / 0.4,
    )
    assert perplexity == formula.score(end).L
    assert {f.weight for f in (formula.D, formula.A, formula.H)} == {DEFAULT_WEIGHT}


def test_tokens_and_time_weigh_0_05_at_the_end_of_the_plan():
    """Together, as the elasticity there."""
    formula = Formula.for_plan(parameters=10**8, tokens=1e9)
    slope = sum((f.ln_f(1 + 1e-6) - f.ln_f(1 - 1e-6)) / 2e-6 for f in (formula.D, formula.H))
    assert slope == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(("x", "asked"), [(0.1, "0.87"), (0.5, "2.84"), (1.0, "3.97")])
def test_what_the_default_asks_for_twice_the_tokens_and_time(x, asked):
    """From a tenth of the plan, from half of it, and from its end, in %."""
    formula = Formula.for_plan(parameters=10**8, tokens=1e9)
    charged = formula.D.f(2 * x) * formula.H.f(2 * x) / (formula.D.f(x) * formula.H.f(x))
    assert f"{100 * (1 - 1 / charged):.2f}" == asked
    assert formula.D.doubling(x) + formula.H.doubling(x) == pytest.approx(math.log(charged))


@given(st.floats(1e-3, 1e3), st.floats(0, 1), st.floats(0, 2), st.floats(0, 2))
def test_L_falls_below_the_elasticity_needed(x, weight, c, d):
    """-Σ w(1 + c)x/(c + x) over what grows; what the model fixes has no part in it."""
    formula = Formula(
        D=Factor("tokens", 1e6, weight, c=c),
        A=Factor("total_parameters", 1e3, 0.3),
        H=Factor("device_hours", 2.0, 0.1, c=d),
    )
    m = Measurements(tokens=round(x * 1e6), total_parameters=7, device_hours=2.0)
    x = round(x * 1e6) / 1e6
    expected = weight * (1 + c) * x / (c + x) + 0.1 * (1 + d) / (d + 1)
    assert formula.elasticity_needed(m) == pytest.approx(-expected, rel=1e-6)
    assert Formula().elasticity_needed(m) == 0.0
    assert formula.elasticity_needed(Measurements(tokens=1)) is None
    twice = Formula(D=lambda m: m.tokens**0.5)
    assert twice.elasticity_needed(m) == pytest.approx(-0.5, rel=1e-6)


@given(st.floats(1e-3, 1e3), st.floats(0, 1, allow_subnormal=False))
def test_a_doubling_asks_1_less_2_to_the_minus_w_for_a_power(x, weight):
    """From any point, where c = 0; where c = 1 less before the reference and more after it."""
    assert Factor("tokens", 1.0, weight, c=0).doubling(x) == pytest.approx(weight * math.log(2))
    soft = Factor("tokens", 1.0, weight, c=1).doubling(x)
    assert soft <= 2 * weight * math.log(2) * (1 + 1e-9)
    assert Factor("tokens", 1.0, c=0).doubling(0.0) == 0.0


@pytest.mark.parametrize(("trained", "off"), [(0.001, 3.4), (0.01, 3.4), (0.5, 1.4), (1.0, 0.0)])
def test_a_frozen_model_scores_a_little_below_its_perplexity(trained, off):
    """What a run trains of its model hardly changes what a step costs; f(A) in % below 1."""
    formula = Formula.for_plan(parameters=10**8, tokens=1e9)
    m = Measurements(perplexity=10.0, trainable_parameters=round(trained * 10**8))
    assert formula.score(m).f_A == pytest.approx(((1 + trained) / 2) ** 0.05)
    assert 100 * (1 - formula.score(m).f_A) == pytest.approx(off, abs=0.05)


@pytest.mark.parametrize("tokens", [None, 0])
def test_without_a_plan_the_reference_is_compute_optimal(tokens):
    """The formula says that it took the compute-optimal number of tokens."""
    formula = Formula.for_plan(parameters=10**9, tokens=tokens)
    assert formula.D.reference == compute_optimal_tokens(1e9)
    assert formula.H.reference == pytest.approx(6 * 1e9 * compute_optimal_tokens(1e9) / 0.4)
    assert formula.origin == "no finite plan: the compute-optimal 2.27e+10 tokens"


def test_a_plan_is_named_as_the_origin():
    """A record tells which plan the formula came from."""
    formula = Formula.for_plan(parameters=10**9, tokens=2e9)
    assert formula.origin == "the run's own plan of 2e+09 tokens"


@pytest.mark.parametrize(("parameters", "e", "tokens"), [(1e8, 0.277, 2.5e9), (1e9, 0.124, 2.3e10)])
def test_the_formula_for_a_model_follows_the_scaling_law(parameters, e, tokens):
    """Each weight is half the elasticity on the compute-optimal frontier."""
    formula = Formula.for_model(parameters)
    for factor in (formula.D, formula.A, formula.H):
        assert 2 * factor.weight == pytest.approx(e, rel=0.005)
    assert formula.D.reference == pytest.approx(tokens, rel=0.02)
    assert formula.H.reference == 6 * parameters * formula.D.reference / 0.4


@pytest.mark.parametrize("parameters", [1e8, 7e9])
@pytest.mark.parametrize("served", [1e9, 1e12, 1e14])
def test_a_model_that_serves_has_its_lowest_loss_for_its_lifetime_compute(parameters, served):
    """At fixed 6·N·D + 2·N·S the law's loss is lowest at the reference, and L is flat there."""
    formula = Formula.for_serving(parameters, tokens_served=served)
    tokens = formula.D.reference
    compute = 6 * parameters * tokens + 2 * parameters * served

    def loss(ln_n):
        n = parameters * math.exp(ln_n)
        d = (compute - 2 * n * served) / (6 * n)
        return LAW_A * n**-LAW_ALPHA + LAW_B * d**-LAW_BETA

    h = 1e-4
    bend = (loss(h) - 2 * loss(0.0) + loss(-h)) / h**2
    assert bend > 0
    assert (loss(h) - loss(-h)) / (2 * h) == pytest.approx(0, abs=1e-5 * bend)
    w_D, w_A, w_H = formula.D.weight, formula.A.weight, formula.H.weight
    assert w_A + w_H == pytest.approx(LAW_ALPHA * LAW_A * parameters**-LAW_ALPHA)
    assert w_D + w_H == pytest.approx(LAW_BETA * LAW_B * tokens**-LAW_BETA)
    assert tokens > Formula.for_model(parameters).D.reference
    assert f"serve {served:.4g} tokens" in formula.origin


def test_a_model_that_serves_nothing_has_the_formula_for_its_training():
    """And a number of tokens that is none is refused."""
    assert Formula.for_serving(1e8, tokens_served=0).id == Formula.for_model(1e8).id
    for bad in (-1, math.nan, math.inf, "many"):
        with pytest.raises(ValueError, match=r"tokens_served: expected a finite number >= 0"):
            Formula.for_serving(1e8, tokens_served=bad)


def test_formulas_that_charge_alike_have_one_id():
    """Wherever they come from; any change of what they charge gives another."""
    one = Formula(D=Factor("tokens", 1e9, 0.05), origin="here")
    assert Formula.from_dict({**one.to_dict(), "origin": "there"}).id == one.id
    assert re.fullmatch("[0-9a-f]{8}", one.id)
    others = [
        Formula(D=Factor("tokens", 1e9, 0.06)),
        Formula(D=Factor("tokens", 2e9, 0.05)),
        Formula(H=Factor("tokens", 1e9, 0.05)),
        Formula(D=Factor("tokens", 1e9, 0.05), T="nominal_perplexity"),
    ]
    assert len({one.id, *(f.id for f in others)}) == 5


def test_the_elasticity_of_a_tiny_model_is_that_of_ten_million_parameters():
    """The law was fitted to no smaller model."""
    assert Formula.for_model(1e5).D.weight == Formula.for_model(1e7).D.weight


# ---------------------------------------------------------------- other measures


def test_every_measure_of_a_level_waits_for_one_and_the_same():
    """Two levels in one formula would be two curves."""
    D, H = Factor("tokens_to_level", 1.0, level=20), Factor("device_hours_to_level", 1.0, level=20)
    assert Formula(D=D, H=H).level == 20
    assert Formula().level is None
    with pytest.raises(ValueError, match=r"one level of perplexity, got \[15.0, 20.0\]"):
        Formula(D=D, H=Factor("device_hours_to_level", 1.0, level=15))


def test_a_level_measured_for_another_perplexity_does_not_count():
    """It would charge for a different thing."""
    m = Measurements(perplexity=9.0, tokens=90, level=10.0, to_level={"tokens": 50})
    fits = Formula(D=Factor("tokens_to_level", 50, level=10.0))
    other = Formula(D=Factor("tokens_to_level", 50, level=20.0))
    assert fits.score(m).L == 9.0
    assert other.score(m).L is None
    assert other.score(m).missing == (
        "tokens_to_level: unavailable: not measured for a level of 20",
    )


def test_a_measure_of_ones_own_is_charged_by_its_name():
    """It must be marked as one's own: a typo in another's name must not become a measure."""
    formula = Formula(A=Factor("batch_size", 32, weight=1.0, c=0, own=True))
    assert formula.score(Measurements(perplexity=5.0, own={"batch_size": 64})).L == 10.0
    missing = formula.score(Measurements(perplexity=5.0)).missing
    assert missing == ("batch_size: unavailable: not measured",)
    assert formula.own_measures == ("batch_size",)
    with pytest.raises(ValueError, match="own=True"):
        Factor("batch_size", 32)


def test_T_may_be_that_of_a_nominal_token():
    """exp(4 x nats per byte), whatever the tokenizer's tokens are."""
    m = Measurements(perplexity=9.0, bits_per_byte=1.5)
    assert Formula(T="nominal_perplexity").score(m).L == pytest.approx(2**6)
    without = Formula(T="nominal_perplexity").score(Measurements(perplexity=9.0))
    assert without.L is None
    assert [reason.split(":")[0] for reason in without.missing] == ["nominal_perplexity"]
    with pytest.raises(ValueError, match=r"Formula\.T: expected 'perplexity' or"):
        Formula(T="bits_per_byte")


@given(formulas(), CANDIDATE)
def test_the_parts_of_ln_L_add_up(formula, m):
    """Also where a product of them would leave the range of floats."""
    parts = formula.ln_parts(m)
    assert math.fsum(parts.values()) == pytest.approx(math.log(formula.score(m).L), abs=1e-12)
    huge = formula.ln_parts(Measurements(nll=800.0, **{n: m.get(n) for n in CHARGED[1:]}))
    assert huge == {**parts, "T": 800.0}
    assert Formula(D=2.0, A=lambda m: 3.0).ln_parts(Measurements()) == {
        "T": None, "D": math.log(2), "A": math.log(3), "H": 0.0,
    }  # fmt: skip
