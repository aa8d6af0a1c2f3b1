"""Runs side by side: by L under one formula, else by the Pareto front, and why they differ."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial

import pytest

from lightning_lscore.equation.evidence import EvaluationSet, OccupiedDevice
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.record import Record
from lightning_lscore.show.comparison import comparison

SET = partial(EvaluationSet, tokens=(7,), perplexities=(9.0,), source="a test")
CHEAP = Formula(D=Factor("tokens", 1000.0, 0.01))
DEAR = Formula(D=Factor("tokens", 1000.0, 1.0), origin="the run's own plan of 1e+03 tokens")
ALL = Formula(
    D=Factor("tokens", 1000.0, 0.05),
    A=Factor("trainable_parameters", 100.0, 0.2),
    H=Factor("device_hours", 0.1, 0.3),
)
CPU = OccupiedDevice(
    key="a", name="a CPU", kind="cpu", dtype="float32", peak_flops=1e9, peak_source="measured"
)


def record(step, perplexity, *, formula=CHEAP, run="a", mark="01", devices=(), **measures):
    m = {"tokens": 100 * step, "device_hours": step / 100, **measures}
    m = Measurements(perplexity=perplexity, **m)
    return Record(
        run=run, batch=step, step=step, epoch=0, time="", measurements=m,
        score=formula.score(m), formula=formula.to_dict(), devices=devices,
        evaluation=SET(fingerprints=(mark,)),
    )  # fmt: skip


RUN = [record(1, 20.0), record(2, 12.0), record(4, 11.0)]
OTHER = [record(1, 15.0, run="b"), record(2, 14.0, run="b")]


def under(formula, records):
    return [
        replace(r, formula=formula.to_dict(), score=formula.score(r.measurements)) for r in records
    ]


def table(text, after):
    """Rows of the table after a line that starts so, as lists of cells."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(after))
    head = next(i for i in range(start, len(lines)) if lines[i].startswith("run "))
    end = next((i for i in range(head, len(lines)) if not lines[i]), len(lines))
    return [re.split(r"\s\s+", line.strip()) for line in lines[head:end]]


# ---------------------------------------------------------------- one formula


def test_runs_of_one_formula_are_ranked_by_L_with_its_parts():
    """The lowest first and marked, whatever the order they are given in."""
    text = comparison({"two": OTHER, "one": RUN})
    assert text.startswith(f"Ranked by L under formula {CHEAP.id} (given), each run at its best L.")
    head, first, second = table(text, "Ranked")
    assert head == [
        "run", "step", "tokens", "device time", "perplexity", "f_D", "f_A", "f_H", "L", "last L",
    ]  # fmt: skip
    best = CHEAP.score(RUN[-1].measurements)
    numbers = [f"{x:.4f}" for x in (11.0, best.f_D, 1.0, 1.0, best.L)]
    assert first == ["one", "4", "400", "144.0 s", *numbers, "<", f"{best.L:.4f}"]
    assert second[0] == "two"
    assert [row[0] for row in table(comparison({"1": RUN, "2": OTHER}, DEAR), "Ranked")[1:]] == [
        "1", "2",
    ]  # fmt: skip


def test_a_given_formula_scores_all_runs_again():
    text = comparison({"one": RUN, "two": under(ALL, OTHER)}, DEAR)
    assert f"under formula {DEAR.id}" in text
    (row,) = [row for row in table(text, "Ranked") if row[0] == "two"]
    assert row[-2] == f"{DEAR.score(OTHER[0].measurements).L:.4f}"  # its best is its first


def test_runs_on_other_sets_are_refused():
    """They would look comparable."""
    other = [record(1, 5.0, mark="02", run="b")]
    with pytest.raises(ValueError, match=r"got two: evaluated on other held-out tokens than one\."):
        comparison({"one": RUN, "two": other})


def test_a_run_without_an_L_comes_last_and_says_why():
    """It is not the best one, and a missing measure has a reason, not a dash alone."""
    formula = Formula(H=Factor("energy_kwh", 1.0))
    scored = [record(3, 50.0, run="b", energy_kwh=2.0)]
    text = comparison({"one": RUN, "two": scored}, formula)
    _, first, second = table(text, "Ranked")
    assert (first[0], second[0], second[-2]) == ("two", "one", "-")
    assert "no L: energy_kwh: unavailable: not measured (one)" in text
    assert "cost: unavailable: not measured (all runs)" in text


# ---------------------------------------------------------------- no common formula


def test_runs_of_different_plans_are_not_ranked_by_the_first_ones_formula():
    """The front needs no formula: 12 for 200 tokens and 11 for 400 are on it, 14 for 200 is not."""
    text = comparison({"one": RUN, "two": under(DEAR, OTHER)})
    assert "scored under 2 formulas, so their values of L do not compare" in text
    assert f"{DEAR.id} (the run's own plan of 1e+03 tokens): two" in text
    head, one, two = table(text, "These runs")
    assert head == [
        "run", "formula", "perplexity", "step", "tokens", "device time", "rank by L",
    ]  # fmt: skip
    assert one == ["one", CHEAP.id, "11.0000", "4", "400*", "144.0 s*", "1"]
    assert two == ["two", DEAR.id, "14.0000", "2", "200", "72.0 s", "2"]
    assert "Formula.from_record" in text
    assert "Ranked by L" not in text


def test_the_range_of_ranks_is_that_over_the_formulas_of_the_runs():
    """Cheap tokens make the long run the first, dear ones the second."""
    short = [record(1, 12.0, run="b", formula=DEAR)]
    places = {row[0]: row[-1] for row in table(comparison({"1": RUN, "2": short}), "These")}
    assert places["1"] == places["2"] == "1 to 2"


def test_a_run_whose_formula_is_a_function_is_on_the_front_all_the_same():
    function = Formula(D=lambda m: 1.0)
    text = comparison({"one": RUN, "two": under(function, OTHER)})
    (row,) = [row for row in table(text, "These") if row[0] == "two"]
    assert row[1] == "a function"


# ---------------------------------------------------------------- against a baseline


def test_a_run_reaches_the_baselines_perplexity_for_a_share_of_its_spending():
    """Interpolated on the recorded curve; not reached is said."""
    text = comparison({"one": RUN, "two": OTHER}, baseline="two")
    share = (math.log(20) - math.log(14)) / (math.log(20) - math.log(12))
    assert "Against two, whose lowest perplexity is 14.0000:" in text
    assert f"one reaches it with {(100 + 100 * share) / 200:.2f} of its tokens, " in text
    assert "two does not reach it." in comparison({"one": RUN, "two": OTHER})
    with pytest.raises(ValueError, match=r"one of the runs \(one, two\), got three"):
        comparison({"one": RUN, "two": OTHER}, baseline="three")


def test_the_difference_of_L_falls_into_its_parts():
    """They multiply to the whole, in percent."""
    m = {"trainable_parameters": 100}
    a = [record(4, 10.0, formula=ALL, **m)]
    b = [record(4, 10.8, formula=ALL, run="b", trainable_parameters=50)]
    text = comparison({"a": a, "b": b})
    A, L = (100 * (x[1] / x[0] - 1) for x in ((1.0, 0.5**0.2), (a[0].L, b[0].L)))
    assert (
        f"{abs(L):.1f} % lower L: perplexity +8.0 %, D +0.0 %, A \N{MINUS SIGN}{-A:.1f} %" in text
    )
    assert "By f(A) alone: without the size of what it trains its L would be 8.0 % higher." in text


NOISY = [10.0, 9.1, 8.0, 7.5, 7.1, 6.6, 6.4, 6.0]


SMOOTH = [5 + 5 / i for i in range(1, 9)]


def curve(run, factor=1.0, slow=1.0, perplexities=NOISY):
    return [
        record(
            i,
            T * factor,
            formula=ALL,
            run=run,
            devices=(CPU,),
            tokens=100 * i,
            device_hours=slow * i / 100,
            model_flops=6e4 * i,
            trainable_parameters=100,
        )
        for i, T in enumerate(perplexities, 1)
    ]


def test_a_difference_below_the_noise_of_the_curves_is_a_tie():
    text = comparison({"a": curve("a"), "b": curve("b", 1.002)})
    assert [row[-2] for row in table(text, "Ranked")[1:]] == ["<", "="]
    assert re.search(r"0\.2 % higher L: .* A tie: 0\.2 % apart, noise is \d", text)
    assert "= a tie with a: b (0.2 % apart" in text
    text = comparison({"a": curve("a"), "b": curve("b", 1.5)})
    assert table(text, "Ranked")[1][-2] == "<"
    assert "tie" not in text


def test_equal_work_that_took_longer_on_a_like_machine_is_a_tie():
    """The load of a shared machine is no property of the run."""
    light = replace(ALL, H=Factor("device_hours", 0.1, 0.05))
    a, b = curve("a", 1, 1, SMOOTH), curve("b", 1.0001, 1.5, SMOOTH)
    text = comparison({"a": a, "b": b}, light)
    assert "A tie: by machine time alone, 1.50 times as long a token of the same work" in text
    gpu = replace(CPU, name="a GPU", kind="cuda")
    other = [replace(r, devices=(gpu,)) for r in b]
    assert "tie" not in comparison({"a": a, "b": other}, light)


def test_repeated_runs_say_what_noise_is():
    """Two seeds 20 % apart make a third run 10 % away no winner."""
    runs = {"a": curve("a"), "b": curve("b", 1.2), "c": curve("c", 0.9)}
    sure = comparison(runs)
    assert "tie" not in sure
    text = comparison(runs, repeats=[("a", "b")])
    sd = math.log(1.2) / math.sqrt(2)
    noise = 200 * math.sqrt(2) * sd
    assert f"noise is {noise:.2g} %" in text
    with pytest.raises(ValueError, match=r"one of the runs .* got d"):
        comparison(runs, repeats=[("a", "d")])
