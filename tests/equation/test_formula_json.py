from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.measures import MEASURES

WEIGHTS = st.floats(0, 10)
SOFTNESS = st.floats(0, 100)
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


def dominates(measurements):
    return 1.0


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
