"""The equation in words: what it prints must be what the formula computes."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.curve.calibrate import calibrate
from lightning_lscore.curve.patience import Patience
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.record import Record
from lightning_lscore.show.calibration import explain_calibration
from lightning_lscore.show.equation_in_words import exchange_rates, overview, worked_example
from lightning_lscore.show.explain import explain_run, idle_cost

FORMULA = Formula(
    D=Factor("tokens", 1000.0, 0.1),
    A=Factor("trainable_parameters", 100.0, 0.2),
    H=Factor("device_hours", 2.0, 0.3),
    origin="a budget",
)


def record(step, perplexity, formula=FORMULA, **changes):
    m = Measurements(
        **{
            "perplexity": perplexity,
            "tokens": 100 * step,
            "trainable_parameters": 100,
            "device_hours": step / 10,
            "busy_fraction": 0.25,
            **changes,
        }
    )
    return Record(
        run="a", batch=step, step=step, epoch=0, time="", measurements=m,
        score=formula.score(m), formula=formula.to_dict(),
    )  # fmt: skip


RUN = [record(1, 20.0), record(5, 10.0), record(50, 9.5)]


def changes(text):
    """The column "change of ln L" of each table, by letter."""
    tables = []
    for line in text.splitlines():
        if found := re.match(r"   ([TDAHL])  .* ([+-]\d+\.\d{4})\b", line):
            tables.extend([{}] * (found[1] == "T"))
            tables[-1] = {**tables[-1], found[1]: round(float(found[2]) * 1e4)}
    return tables


def test_the_overview_tells_letters_rates_and_the_example():
    """For a person who has never seen the equation."""
    text = overview()
    assert "L = perplexity(T) · f(D) · f(A) · f(H)" in text
    for letter, measure in zip(
        "TDAH", ("perplexity", "tokens", "trainable", "capacity"), strict=True
    ):
        assert re.search(rf"^    {letter}  .*\n       {measure}", text, re.MULTILINE)
    assert "20 · 0.95 · 0.9 · 0.85 = 14.535" in text
    plain = " ".join(text.split())
    assert "must buy 0.87 % lower perplexity from a tenth of the reference" in plain
    assert "2.8 % from half of it, 4.0 % from the reference itself" in plain
    assert "if the machine ran at 40 % of its peak" in plain
    assert re.search(r"18\.8 % lower perplexity at 1e\+08 parameters", text)
    assert max(map(len, text.splitlines())) <= 100


def test_the_overview_of_a_formula_tells_its_own_rates():
    """From the reference (3/2)^-2w where c = 1, and 2^-w where c = 0."""
    text = " ".join(overview(Formula.for_model(1e8)).split())
    assert "the scaling law for 1e+08 parameters" in text
    w = Formula.for_model(1e8).A.weight
    by_hand = 100 * (1 - 2**-w * 1.5 ** (-2 * w))
    assert f"{by_hand:.1f} % from the reference itself." in text
    text = exchange_rates(FORMULA)
    plain = " ".join(text.split())
    assert f"{100 * (1 - 1.5**-0.8):.1f} % from the reference itself. Doubling the size" in plain
    assert f"{100 * (1 - (1.2 / 1.1) ** -0.8):.1f} % lower perplexity from a tenth" in plain
    power = Formula(D=Factor("tokens", 1.0, 0.1, c=0), H=Factor("device_hours", 1.0, 0.3, c=0))
    assert f"must buy {100 * (1 - 2**-0.4):.1f} % lower perplexity.\n" in exchange_rates(power)
    (line,) = (line for line in text.splitlines() if "tokens" in line)
    assert line.split()[-2:] == [f"{FORMULA.D.f(0.5):.4f}", f"{FORMULA.D.f(2):.4f}"]


def test_constants_functions_and_ones_own_measures_are_shown_as_such():
    """Nothing is hidden because it is no Factor."""
    own = Factor("batch_size", 32, 0.1, own=True)
    text = overview(Formula(D=0.5, A=lambda m: 1.0, H=own))
    assert "the constant 0.5" in text
    assert "a function" in text
    assert "batch_size: a measure of your own" in text
    assert "Doubling" not in text


@given(*[st.floats(0.01, 100)] * 4)
def test_the_printed_logarithms_of_an_example_add_up(T, D, A, H):
    """To the last printed digit."""
    text = worked_example(T, D, A, H)
    logs, total = text.split("add up: ")[1].split(" = ")
    terms = [float(term.replace(" ", "")) for term in re.findall(r"[+-]? ?\d+\.\d{4}", logs)]
    assert round(sum(terms) * 1e4) == round(float(total) * 1e4)
    assert float(total) == pytest.approx(math.log(T * D * A * H), abs=1e-4)
    # In the order of Score.L: another one rounds differently in the last bit, and may print so.
    assert f"= {math.prod(sorted((T, D, A, H))):.6g}\n" in text


@pytest.mark.parametrize("bad", [{"perplexity": 0}, {"perplexity": math.inf}, {"D": -1}, {"H": 0}])
def test_an_example_of_no_numbers_is_refused(bad):
    """A factor or perplexity of 0 has no logarithm."""
    values = {"perplexity": 20, "D": 1, "A": 1, "H": 1, **bad}
    with pytest.raises(ValueError, match="expected a finite number > 0, got"):
        worked_example(**values)


def test_a_run_is_explained_from_its_first_to_its_best_to_its_last_validation():
    """What each part did to ln L, and that the parts add up."""
    text = explain_run(RUN)
    assert text.startswith(
        f"Run a: 3 validations up to step 50.\n\nThe rates of formula {FORMULA.id} (a bud"
    )
    assert "From step 1 to step 5, the best L, L was moved by" in text
    assert "From step 5, the best L, to step 50 L was moved by" in text
    first, second = changes(text)
    for table, (a, b) in ((first, RUN[:2]), (second, RUN[1:])):
        assert sum(table[x] for x in "TDAH") == table["L"]
        assert table["L"] == round(1e4 * math.log(b.L / a.L))
        assert table["T"] == pytest.approx(
            1e4 * math.log(b.score.perplexity / a.score.perplexity), abs=1
        )
        assert table["H"] == pytest.approx(1e4 * math.log(b.score.f_H / a.score.f_H), abs=1)
    assert f"{100 * (RUN[2].L / RUN[1].L - 1):+.2f} %" in text


def test_any_two_validations_can_be_explained():
    """By their steps; a step without one is answered with those that there are."""
    (table,) = changes(explain_run(RUN, 1, 50))
    assert table["L"] == round(1e4 * math.log(RUN[2].L / RUN[0].L))
    assert changes(explain_run(RUN, start=5)) == changes(explain_run(RUN, 5, 50))
    with pytest.raises(ValueError, match=r"expected the step of a validation \(1, 5, 50\), got 7"):
        explain_run(RUN, 7)


@given(st.lists(st.tuples(st.floats(1.01, 1e3), st.integers(1, 10**6)), min_size=2, max_size=6))
def test_the_parts_always_add_up_as_printed(points):
    """Whatever the rounding."""
    run = [
        record(i, T, tokens=tokens, device_hours=tokens / 7)
        for i, (T, tokens) in enumerate(points, 1)
    ]
    for table in changes(explain_run(run)):
        assert sum(table[x] for x in "TDAH") == table["L"]


def test_a_single_validation_and_one_without_an_L_are_explained_or_refused():
    """Of one it is told what L is made of; no L needs its reason."""
    text = explain_run(RUN[1:2])
    assert text.startswith("Run a: 1 validation up to step 5.")
    assert "At step 5 L is made of (the parts of ln L add up)" in text
    (table,) = changes(text)
    assert sum(table[x] for x in "TDAH") == table["L"] == round(1e4 * math.log(RUN[1].L))
    assert re.search(rf"D  tokens +500 tokens +-0\.\d+ +{RUN[1].score.f_D:.4f}\n", text)
    assert changes(explain_run(RUN, 5, 5)) == [table]
    lacking = record(1, 5.0, device_hours=None)
    with pytest.raises(ValueError, match="got none: device_hours: unavailable"):
        explain_run([lacking])


@pytest.mark.parametrize("price", [1.0, 0.5, 0.0])
def test_what_idle_time_costs_is_the_factor_beside_that_of_busy_time(price):
    """A quarter was busy: f_H of all of it at its price, over f_H of that quarter."""
    H = Factor("device_hours", 2.0, 0.3, idle_price=price)
    run = record(50, 9.5, Formula(H=H))
    paid, busy = H.f(5 * (0.25 + 0.75 * price) / 2), H.f(5 * 0.25 / 2)
    text = idle_cost(Formula(H=H), run)
    assert "idle for 75.0 % of the training time" in text
    assert (
        f"makes L {100 * (paid / busy - 1):.2f} % higher (f_H {paid:.4f} instead of {busy:.4f})"
        in text
    )


def test_idle_time_that_is_unknown_or_free_is_said():
    """No number is made up."""
    unknown = idle_cost(FORMULA, record(5, 9.0, busy_fraction=None))
    assert unknown == "Idle time: not known, unavailable: not measured."
    free = Formula(H=Factor("energy_kwh", 1.0))
    assert "cost no L" in idle_cost(free, RUN[0])
    assert "cost no L" in idle_cost(Formula(), RUN[0])


def test_a_calibration_is_told_as_exchange_rates_with_their_intervals():
    """And with its warnings."""
    N = [1e7, 1e7, 1e8, 1e8]
    D = [1e9, 1e10, 1e9, 1e10]
    found = calibrate(N, D, [3.9, 3.6, 3.4, 3.1])
    text = explain_calibration(found)
    assert "4 finished runs" in text
    assert f"{found.e_N:.3f} %" in text
    for name in ("e_N", "e_D", "w_D", "w_A", "w_H"):
        interval = getattr(found, f"{name}_interval")
        assert f"{interval.low:.3f} to {interval.high:.3f}" in text
    rates = [
        100 * (1 - 2**-e) for e in (found.e_N, found.e_N_interval.low, found.e_N_interval.high)
    ]
    assert (
        "Doubling the parameters, and so the time, bought about {:.1f} % lower perplexity "
        "({:.1f} to {:.1f} %).".format(*rates)
        in text
    )
    assert text.count("Warning: ") == len(found.warnings) > 0


def test_a_run_is_replayed_under_the_rule():
    """Its own where one is given."""
    worse = [record(i, 20.0 if i < 5 else 20.0 * 1.2 ** (i - 4)) for i in range(1, 9)]
    text = explain_run(worse)
    assert "CostEarlyStopping would have stopped at step 3 (price up" in text
    late = explain_run(worse, patience=Patience(ratio=0.5))
    assert re.search(r"at step \d \(spending up [0-9.]+ % without a better L\)", late)
