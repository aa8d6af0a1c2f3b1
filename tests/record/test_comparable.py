"""Validations that compare."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest

from lightning_lscore.equation.evidence import EvaluationSet
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.comparable import (
    best_record,
    comparable_with_last,
    rescored,
    why_incomparable,
)
from lightning_lscore.record.record import Record
from lightning_lscore.show.tables import spending_summary, validation_table

SET = partial(EvaluationSet, tokens=(7,), perplexities=(9.0,), source="a test")
CHEAP = Formula(D=Factor("tokens", 1000.0, 0.01))
DEAR = Formula(D=Factor("tokens", 1000.0, 1.0))


def record(step, perplexity, *, formula=CHEAP, run="a", mark="01", counted=None, **measures):
    m = Measurements(perplexity=perplexity, tokens=100 * step, device_hours=step / 100, **measures)
    return Record(
        run=run, batch=step, step=step, epoch=0, time="", measurements=m,
        score=formula.score(m), formula=formula.to_dict(),
        evaluation=SET(fingerprints=(mark,), bytes=counted),
    )  # fmt: skip


RUN = [record(1, 20.0), record(2, 12.0), record(4, 11.0)]
OTHER = [record(1, 15.0, run="b"), record(2, 14.0, run="b")]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (record(2, 9.0), None),
        (record(2, 9.0, run="b"), None),
        (replace(record(2, 9.0), formula={**CHEAP.to_dict(), "origin": "elsewhere"}), None),
        (record(2, 9.0, formula=DEAR), "scored under another formula"),
        (record(2, 9.0, mark="02"), "evaluated on other held-out tokens"),
        (replace(record(2, 9.0, run="b"), evaluation=None), "evaluated on other held-out tokens"),
    ],
)
def test_L_compares_under_one_formula_and_one_evaluation_set(other, why):
    """The origin of a formula is only a word."""
    assert why_incomparable(RUN[0], other) == ([why] if why else [])


def test_without_a_fingerprint_only_validations_of_one_run_are_taken_to_compare():
    """Nothing says what another run was evaluated on."""
    a, b = (replace(r, evaluation=None) for r in RUN[:2])
    assert why_incomparable(a, b) == []
    (why,) = why_incomparable(a, replace(b, run="b"))
    assert why == "nothing says that it was evaluated on the same held-out tokens"


def test_nominal_perplexities_compare_on_the_same_text_in_other_tokens():
    """Bytes instead of fingerprints."""
    nominal = replace(CHEAP, T="nominal_perplexity")
    a, b, c = (
        record(1, 9.0, formula=nominal, mark=mark, counted=(counted,), bits_per_byte=1.0)
        for mark, counted in (("01", 50), ("02", 50), ("02", 51))
    )
    assert why_incomparable(a, b) == []
    assert why_incomparable(a, c) == ["evaluated on other held-out text"]


def test_a_best_L_is_not_looked_for_among_those_that_do_not_compare():
    """A record may go on under another formula; the table shows all of it."""
    mixed = [record(1, 2.0, formula=Formula()), *RUN]
    assert comparable_with_last(mixed) == RUN
    assert best_record(mixed) is best_record(RUN)
    assert len(validation_table(mixed).splitlines()) == 5
    assert "1 validation left out: scored under another formula" in spending_summary(mixed)
    assert "left out" not in spending_summary(RUN)


def test_a_run_is_scored_again_from_what_was_measured():
    """The old records stay as they are."""
    again = rescored(RUN, DEAR)
    assert [r.L for r in again] == [DEAR.score(r.measurements).L for r in RUN]
    assert {Formula.from_dict(r.formula) for r in again} == {DEAR}
    assert [Formula.from_dict(r.formula) for r in RUN] == [CHEAP] * 3


def test_a_level_is_looked_for_again_in_the_record():
    """Another formula may ask for a perplexity that nobody waited for in the run."""
    formula = Formula(D=Factor("tokens_to_level", 100.0, 1.0, c=0, level=15.0))
    again = rescored(RUN, formula)
    share = math.log(20 / 15) / math.log(20 / 12)
    tokens = 100 + share * 100
    assert [r.measurements.get("tokens_to_level") for r in again] == [
        None, pytest.approx(tokens), pytest.approx(tokens),
    ]  # fmt: skip
    assert [r.L for r in again] == [None, *(pytest.approx(T * tokens / 100) for T in (12, 11))]
    assert "is not reached yet" in again[0].score.missing[0]
