"""Runs side by side under one formula."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest

from lightning_lscore.equation.evidence import EvaluationSet
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.record import Record
from lightning_lscore.show.comparison import comparison

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


def test_runs_stand_side_by_side_under_the_first_runs_formula():
    """Last and best L of each, the lowest best marked, and the formula named."""
    other = [replace(r, formula=DEAR.to_dict(), score=DEAR.score(r.measurements)) for r in OTHER]
    head, _, names, *lines = comparison({"one": RUN, "two": other}).splitlines()
    assert head == "Scored under one formula: given."
    columns = re.split(r"\s\s+", names)
    assert columns == ["run", "tokens", "device time", "last L", "perplexity", "best L", "at step"]
    rows = [line.split() for line in lines]
    expected = [f"{CHEAP.score(r.measurements).L:.4f}" for r in (RUN[-1], OTHER[-1])]
    assert [row[4] for row in rows] == expected
    assert [row[-1] for row in rows] == ["<", "2"]
    assert f"{DEAR.score(OTHER[-1].measurements).L:.4f}" in comparison({"1": RUN, "2": OTHER}, DEAR)


def test_runs_on_other_sets_are_refused():
    """They would look comparable."""
    other = [record(1, 5.0, mark="02", run="b")]
    with pytest.raises(ValueError, match=r"got two: evaluated on other held-out tokens than one\."):
        comparison({"one": RUN, "two": other})


def test_a_run_without_an_L_shows_dashes():
    """And is not the best one."""
    formula = Formula(H=Factor("energy_kwh", 1.0))
    *_, line = comparison({"one": RUN}, formula).splitlines()
    assert line.split() == ["one", "400", "144.0", "s", "-", "11.0000", "-", "-"]
