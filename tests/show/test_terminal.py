from __future__ import annotations

import io
from dataclasses import replace

import pytest
from made_up_records import FALLING, record, run

pytest.importorskip("rich")

from rich.console import Console

from lightning_lscore.equation.formula import Formula
from lightning_lscore.show.terminal import WIDE, follow, run_table, runs_table, sparkline


def shown(what, width=160):
    file = io.StringIO()
    Console(file=file, width=width).print(what)
    return file.getvalue()


def test_the_table_of_a_run_marks_its_best_validations():
    records = run([*FALLING, 8.5])
    text = shown(run_table("my run", records))
    (best,) = [line for line in text.splitlines() if line.rstrip().endswith("lowest L")] or [""]
    (low,) = [line for line in text.splitlines() if line.rstrip().endswith("lowest perplexity")]
    assert low.split()[:2] == ["10", "1.00k"]
    assert f"{min(r.L for r in records):.4f}" in best
    assert "my run · a budget · model FLOPs utilisation 25.0% · busy 50%" in text


def test_what_more_spending_bought_stands_beside_what_it_has_to_buy():
    text = shown(run_table("a", run(elasticity=-0.25, elasticity_needed=-0.125)))
    assert text.count("0.25 %  0.12 %") == len(FALLING)


def test_a_narrow_terminal_gets_whole_columns_without_the_factors():
    wide, narrow = (shown(run_table("a", run(), width=w), w) for w in (WIDE, 80))
    assert "f(D)" in wide
    assert "f(D)" not in narrow
    for text in (wide, narrow):
        assert "perplexity" in text
        assert "…" not in text


@pytest.mark.parametrize("most", [2, 5, 9])
def test_of_many_validations_some_are_shown_and_gaps_are_seen(most):
    """The first, the newest and the best among them."""
    records = [record(i, 20.0 / i**0.1) for i in range(1, 101)]
    lines = shown(run_table("a", records, most)).splitlines()[5:]
    steps = [line.split()[0] for line in lines]
    assert steps[0] == "1"
    assert steps[-1] == "100"
    assert steps.count("⋮") == len(steps) - 1 - steps.count("⋮")
    assert most <= len(steps) - steps.count("⋮") <= most + 2


def test_validations_that_do_not_compare_are_counted_apart():
    other = [replace(record(1, 5.0), evaluation=None)]
    assert "1 more validations do not compare" in shown(run_table("a", [*other, *run()]))


def test_many_runs_have_a_line_each():
    text = shown(runs_table({"a": run(), "[b]": run(FALLING[:3], run="b")}), width=80)
    a, b = text.splitlines()[1:]
    assert a.split()[0] == "a"
    assert b.split()[:3] == ["[b]", "3", "300"]  # no markup of rich's
    assert "12.0000" in b
    assert "do not compare" not in text
    other = {"a": run(), "b": run(formula=Formula(), run="b")}
    assert "do not compare" in shown(runs_table(other))


def test_a_run_that_goes_on_is_shown_anew():
    records, file, waited = run(FALLING[:2]), io.StringIO(), []
    console = Console(file=file, width=120, force_terminal=True)

    def sleep(seconds):
        waited.append(seconds)
        records.append(record(3, 7.7777))

    looks = follow(lambda: run_table("a", records), console, seconds=0.5, sleep=sleep)
    next(looks)
    assert "7.7777" not in file.getvalue()
    next(looks)
    looks.close()
    assert waited == [0.5]
    assert "7.7777" in file.getvalue()


def test_a_sparkline_follows_the_values():
    assert sparkline([3.0, 1.0, 2.0, float("nan")]) == "█▁▅"
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(list(range(1000)), 12)) == 12
