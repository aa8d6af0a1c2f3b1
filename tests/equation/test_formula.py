from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_lscore.equation.formula import (
    DEFAULT_WEIGHT,
    Factor,
    Formula,
    Score,
    compute_optimal_tokens,
)
from lightning_lscore.equation.measurements import MEASURES, Measurements
from lightning_lscore.record.file import append_record
from lightning_lscore.record.record import Record

WEIGHTS = st.floats(0, 10)
SOFTNESS = st.floats(0, 100)
ANY_SIZE = st.floats(0, 1e300) | st.floats(0, 10)
HUGE = pytest.param(10**400, id="10**400")  # json.loads makes such integers; float() refuses them
BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1, True, "1", b"1", None, [1], {}, 1j, HUGE]


def factor(weight, c=None, reference=1.0, measure="device_hours"):
    return Factor(measure, reference=reference, weight=weight, c=c)


# ---------------------------------------------------------------- one factor


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
    fixed = measure in ("trainable_parameters", "total_parameters", "flops_per_token")
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


# ---------------------------------------------------------------- L

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
    assert score.missing == ("perplexity: unavailable: nobody measured it",)


def test_what_is_switched_off_is_never_missing():
    """A weight of 0 needs no measurement."""
    formula = Formula(D=Factor("tokens", 1.0, weight=0), H=Factor("energy_kwh", 1.0, weight=0))
    assert formula.measures == ()
    assert formula.score(Measurements(perplexity=3.0)) == Score(
        perplexity=3.0, f_D=1.0, f_A=1.0, f_H=1.0
    )


def test_a_factor_may_be_a_function_of_the_measurements():
    """A callable is asked at each score."""
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


# ---------------------------------------------------------------- the default formula


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


def test_the_default_rate_asks_3_4_percent_for_twice_the_tokens_and_time():
    """Tokens and time weigh 0.05 together at the reference."""
    formula = Formula.for_plan(parameters=10**8, tokens=1e9)
    slope = sum((f.ln_f(1 + 1e-6) - f.ln_f(1 - 1e-6)) / 2e-6 for f in (formula.D, formula.H))
    assert 1 - 2**-slope == pytest.approx(0.034, abs=2e-4)


def test_a_frozen_model_scores_below_its_perplexity():
    """With fewer parameters trained than there are, f(A) is below 1."""
    formula = Formula.for_plan(parameters=10**8, tokens=1e9)
    m = Measurements(perplexity=10.0, trainable_parameters=10**6)
    assert formula.score(m).f_A == pytest.approx(0.01**0.025)


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


@pytest.mark.parametrize(("parameters", "tokens"), [(1e8, 2.5e9), (1e9, 2.3e10)])
def test_compute_optimal_tokens_agree_with_the_published_law(parameters, tokens):
    """Two points of the law, to the digits that the design states."""
    assert float(f"{compute_optimal_tokens(parameters):.1e}") == tokens


@given(st.floats(0, 1e15))
def test_compute_optimal_tokens_solve_their_equation(parameters):
    """beta·B·D^-beta = alpha·A·N^-alpha, and no size is too small."""
    tokens = compute_optimal_tokens(parameters)
    left = 0.3658 * 2085.43 * tokens**-0.3658
    right = 0.3478 * 482.01 * max(parameters, 1) ** -0.3478
    assert left == pytest.approx(right, rel=1e-9)


# ---------------------------------------------------------------- JSON

CONSTANTS = st.floats(1e-300, 1e300)
REFERENCES = st.floats(1e-300, 1e300)
FACTORS = st.builds(
    Factor,
    st.sampled_from(sorted(name for name in MEASURES if not name.endswith("_to_level"))),
    REFERENCES,
    WEIGHTS,
    st.none() | SOFTNESS,
)
FACTORS |= st.builds(Factor, st.just("steps_to_level"), REFERENCES, WEIGHTS, level=st.just(3.5))
FACTORS |= st.builds(Factor, st.just("learning_rate"), REFERENCES, WEIGHTS, own=st.just(True))
WRITABLE = st.builds(
    Formula,
    T=st.sampled_from(["perplexity", "nominal_perplexity"]),
    D=CONSTANTS | FACTORS,
    A=CONSTANTS | FACTORS,
    H=CONSTANTS | FACTORS,
    origin=st.text(),
)


@given(WRITABLE)
def test_a_formula_comes_back_from_json_as_it_went(formula):
    """Through strict JSON and back nothing is lost, to the last bit."""
    text = json.dumps(formula.to_dict(), allow_nan=False)
    assert Formula.from_dict(json.loads(text)) == formula


@given(formula=WRITABLE)
@settings(max_examples=20)
def test_a_formula_comes_back_from_a_file(tmp_path_factory, formula):
    """save and load are inverse, whatever the text of its origin."""
    path = tmp_path_factory.mktemp("formula") / "f.json"
    formula.save(path)
    assert Formula.load(path) == formula
    assert os.listdir(path.parent) == ["f.json"]


def test_saving_replaces_a_file_whole_or_not_at_all(tmp_path, monkeypatch):
    """A crash in the middle of writing leaves the formula of before."""
    path = tmp_path / "f.json"
    Formula(D=0.5).save(path)

    def crash(data, file, **options):
        file.write('{"lscore_form')
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", crash)
    with pytest.raises(KeyboardInterrupt):
        Formula(D=0.6).save(path)
    assert Formula.load(path).D == 0.5


def test_a_function_is_named_in_json_and_not_read_back(tmp_path):
    """A file cannot hold a function: it is refused both ways, and no file is touched."""
    formula = Formula(A=dominates)
    data = formula.to_dict()
    assert data["A"] == {"function": f"{__name__}.dominates"}
    with pytest.raises(ValueError, match=r"A of this formula is the function .*dominates"):
        Formula.from_dict(data)
    with pytest.raises(ValueError, match="which no file can hold"):
        formula.save(tmp_path / "f.json")
    assert not any(tmp_path.iterdir())


def test_any_callable_can_be_named():
    """Objects without a qualified name, such as partials, are named by their type."""
    assert Formula(D=functools.partial(max, 1)).to_dict()["D"] == {"function": "functools.partial"}


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    """A wrong path is not mistaken for a wrong formula."""
    with pytest.raises(FileNotFoundError):
        Formula.load(tmp_path / "none.json")


def test_the_message_of_load_names_the_file(tmp_path):
    """Whoever has many formulas learns which one is wrong."""
    path = tmp_path / "f.json"
    path.write_text('{"lscore_formula": 1, "D": {"measure": "token"}}')
    with pytest.raises(ValueError, match=r"f\.json: D of a formula: expected measure, reference"):
        Formula.load(path)


VALID = Formula.for_plan(parameters=10**8).to_dict()
DEEP = functools.reduce(lambda inner, _: [inner], range(100_000), 1)
DEEP_BUT_READABLE = functools.reduce(lambda inner, _: [inner], range(700), 1)
HOSTILE = {
    "null": None,
    "a list": [],
    "text": "lscore_formula",
    "an empty object": {},
    "another schema": {**VALID, "lscore_formula": 2},
    "an extra key": {**VALID, "extra": 1},
    "a missing reference": {**VALID, "D": {"measure": "tokens", "weight": 1}},
    "an extra key in a factor": {**VALID, "D": {**VALID["D"], "extra": 1}},
    "a measure that is a list": {**VALID, "D": {**VALID["D"], "measure": ["tokens"]}},
    "a measure that is an object": {**VALID, "D": {**VALID["D"], "measure": {}}},
    "a reference that is a text": {**VALID, "D": {**VALID["D"], "reference": "1"}},
    "a huge reference": {**VALID, "D": {**VALID["D"], "reference": 10**400}},
    "a huge constant": {**VALID, "D": 10**400},
    "a boolean": {**VALID, "D": True},
    "a factor that is a list": {**VALID, "D": [1]},
    "a factor that is null": {**VALID, "D": None},
    "a factor that is empty": {**VALID, "D": {}},
    "not a number": {**VALID, "D": {**VALID["D"], "weight": math.nan}},
    "another T": {**VALID, "T": "nll"},
    "a T that is a list": {**VALID, "T": [1]},
    "a level of tokens": {**VALID, "D": {**VALID["D"], "level": 2}},
    "a level that is a text": {**VALID, "D": {**VALID["D"], "measure": "x", "level": "2"}},
    "no level": {**VALID, "D": {**VALID["D"], "measure": "tokens_to_level"}},
    "a level of 0": {**VALID, "D": {**VALID["D"], "measure": "tokens_to_level", "level": 0}},
    "own that is a number": {**VALID, "D": {**VALID["D"], "own": 1}},
    "an own name that is a path": {**VALID, "D": {**VALID["D"], "own": True, "measure": "a/b"}},
    "an own name that is taken": {**VALID, "D": {**VALID["D"], "own": True}},
    "a deep T": {**VALID, "T": DEEP},
    "deep nesting": DEEP,
    "a deep factor": {**VALID, "D": DEEP},
    "a deep key": {**VALID, "D": {**VALID["D"], "weight": DEEP}},
    "a deep function": {**VALID, "D": {"function": DEEP}},
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_only_a_value_error_comes_out_of_a_dictionary_that_is_no_formula(data):
    """Wrong keys, wrong types, huge numbers and deep nesting are one kind of error, and short."""
    with pytest.raises(ValueError, match=r"expected|no file can hold") as caught:
        Formula.from_dict(data)
    assert len(str(caught.value)) < 1000


BAD_FILES = {
    "empty": b"",
    "not json": b"{",
    "not utf-8": b"\xff\xfe",
    "a deep list": b"[" * 100_000 + b"]" * 100_000,
    "a deep list that json can read": json.dumps({**VALID, "D": DEEP_BUT_READABLE}).encode(),
    "an endless list": b"[" * 100_000,
    "an integer of many digits": b'{"lscore_formula": 1, "D": ' + b"9" * 5000 + b"}",
    "an integer beyond a float": b'{"lscore_formula": 1, "D": ' + b"9" * 400 + b"}",
    "infinity": b'{"lscore_formula": 1, "D": Infinity}',
    "a float beyond a float": b'{"lscore_formula": 1, "D": 1e999}',
    "duplicate keys, the last of them wrong": b'{"lscore_formula": 1, "D": 1, "D": "x"}',
    "a list measure": b'{"lscore_formula":1,"D":{"measure":[],"reference":1,"weight":1}}',
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_only_a_value_error_comes_out_of_a_file_that_is_no_formula(tmp_path, content):
    """The message names the file."""
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json: "):
        Formula.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**308, 10**320) | st.floats()
    | st.text(max_size=5) | st.sampled_from(["tokens", "function", "measure"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["measure", "reference", "weight", "c", "function", "origin", "D", "x"]),
        inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["D", "A", "H", "origin", "lscore_formula", "x"]), JSON) | JSON,
    st.dictionaries(st.sampled_from(["measure", "reference", "weight", "c"]), JSON),
    st.booleans(),
)
@settings(max_examples=300)
def test_any_json_is_a_formula_or_a_value_error(top, inner, mutate):
    """What from_dict accepts can be written again and scored; the rest is a ValueError."""
    if mutate:
        top = {**VALID, "D": {**VALID["D"], **inner}}
    elif isinstance(top, Mapping):
        top = {"lscore_formula": 1, **top}
    try:
        formula = Formula.from_dict(top)
    except ValueError:
        return
    assert Formula.from_dict(json.loads(json.dumps(formula.to_dict()))) == formula
    formula.score(Measurements(perplexity=3.0, tokens=5))


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_any_bytes_in_a_file_are_a_formula_or_a_value_error(tmp_path_factory, content):
    """Random files raise nothing else."""
    path = tmp_path_factory.getbasetemp() / "random.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"random\.json"):
        Formula.load(path)


# ---------------------------------------------------------------- formulas for a study


@pytest.mark.parametrize(("parameters", "e", "tokens"), [(1e8, 0.277, 2.5e9), (1e9, 0.124, 2.3e10)])
def test_the_formula_for_a_model_follows_the_scaling_law(parameters, e, tokens):
    """Each weight is half the elasticity on the compute-optimal frontier."""
    formula = Formula.for_model(parameters)
    for factor in (formula.D, formula.A, formula.H):
        assert 2 * factor.weight == pytest.approx(e, rel=0.005)
    assert formula.D.reference == pytest.approx(tokens, rel=0.02)
    assert formula.H.reference == 6 * parameters * formula.D.reference / 0.4


def test_the_elasticity_of_a_tiny_model_is_that_of_ten_million_parameters():
    """The law was fitted to no smaller model."""
    assert Formula.for_model(1e5).D.weight == Formula.for_model(1e7).D.weight


def baseline(**measured):
    formula = Formula(
        D=Factor("tokens", 7.0, 0.3, c=0.5), A=0.9, H=Factor("device_hours", 2.0, idle_price=0.0)
    )
    m = Measurements(**{"perplexity": 20.0, "tokens": 1000, "device_hours": 3.0, **measured})
    return Record(
        run="b", batch=1, step=5, epoch=0, time="", measurements=m,
        score=formula.score(m), formula=formula.to_dict(),
    )  # fmt: skip


def test_a_baseline_ends_with_its_perplexity_times_its_constants(tmp_path):
    """All that grew is its own reference; measures, weights and c stay."""
    run = baseline(busy_fraction=0.25)
    frozen = Formula.from_record(run)
    assert frozen.score(run.measurements).L == pytest.approx(20.0 * 0.9)
    assert frozen.D == Factor("tokens", 1000.0, 0.3, c=0.5)
    append_record(tmp_path / "lscore.jsonl", run)
    assert Formula.from_record(tmp_path) == frozen


def test_a_baseline_without_a_measure_is_refused():
    """It says which measure, and why it is missing."""
    with pytest.raises(ValueError, match="a value of 'device_hours', got None: unavailable"):
        Formula.from_record(baseline())


# ---------------------------------------------------------------- idle time


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
    """It must be called one's own, so that a typo in another's name is not taken for one."""
    formula = Formula(A=Factor("batch_size", 32, weight=1.0, c=0, own=True))
    assert formula.score(Measurements(perplexity=5.0, own={"batch_size": 64})).L == 10.0
    missing = formula.score(Measurements(perplexity=5.0)).missing
    assert missing == ("batch_size: unavailable: nobody measured it",)
    assert formula.own_measures == ("batch_size",)
    with pytest.raises(ValueError, match="own=True"):
        Factor("batch_size", 32)


@pytest.mark.parametrize("name", ["tokens", "a b", "a/b", "", 3, None])
def test_a_measure_of_ones_own_needs_a_name_of_its_own(name):
    """One that loggers take, and that nothing else has."""
    with pytest.raises(ValueError, match="letters, digits and _ that no other measure has"):
        Factor(name, 1.0, own=True)


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
