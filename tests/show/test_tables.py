from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.equation.evidence import DeviceUse, OccupiedDevice
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.prediction import Prediction, Unpredictable
from lightning_lscore.equation.score import Score
from lightning_lscore.record.comparable import best_record
from lightning_lscore.record.record import Record
from lightning_lscore.show.device_table import SHOWN_DEVICES, device_table
from lightning_lscore.show.tables import expectation, spending_summary, validation_table


def record(step, L=None, *, perplexity=10.0, missing=(), **measures):
    factor = None if L is None or not perplexity else L / perplexity
    score = Score(perplexity=perplexity, f_D=factor, f_A=1.0, f_H=1.0, missing=missing)
    return Record(
        run="a",
        batch=step,
        step=step,
        epoch=0,
        time="",
        measurements=Measurements(perplexity=perplexity, **measures),
        score=score,
        formula={},
    )


RUN = [
    record(10, 9.0, perplexity=9.5, tokens=1500, train_hours=0.01, device_hours=0.02),
    record(20, 6.0, perplexity=6.2, tokens=3_000_000, train_hours=1.0, device_hours=2.0),
    record(
        30,
        6.6,
        perplexity=6.0,
        tokens=4_500_000,
        train_hours=2.0,
        device_hours=4.0,
        energy_kwh=1.25,
        mfu=0.256,
        busy_fraction=0.5,
    ),
]


def test_the_table_has_a_line_for_each_validation_and_marks_the_best():
    """Steps, tokens, time, perplexity, factors and L stand under their names."""
    head, *lines = validation_table(RUN).splitlines()
    assert head.split() == ["step", "tokens", "time", "perplexity", "f_D", "f_A", "f_H", "L"]
    cells = [re.split(r"\s\s+", line.strip()) for line in lines]
    assert cells[0] == ["10", "1.50k", "36.0 s", "9.5000", "0.9474", "1.0000", "1.0000", "9.0000"]
    assert cells[1][-2:] == ["6.0000", "<"]
    assert [line.endswith("<") for line in lines] == [False, True, False]
    assert len({line.index(cell[7]) + len(cell[7]) for line, cell in zip(lines, cells)}) == 1  # noqa: B905


def test_what_is_missing_shows_as_a_dash():
    """Nothing that was not measured looks like a number."""
    line = validation_table([record(1, perplexity=None)]).splitlines()[1]
    assert line.split() == ["1", "-", "-", "-", "-", "1.0000", "1.0000", "-"]


def test_nan_and_infinity_show_as_such():
    """A broken validation is visible, and is not the best one."""
    table = validation_table(
        [record(1, perplexity=math.nan), record(2, math.inf, perplexity=math.inf), record(3, 5.0)]
    )
    _, nan, infinite, good = table.splitlines()
    assert "nan" in nan
    assert "inf" in infinite
    assert [line.endswith("<") for line in (nan, infinite, good)] == [False, False, True]


def test_an_empty_record_is_only_the_heading():
    """A run before its first validation has a table too."""
    assert len(validation_table([]).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([3.0, 1.0, 2.0], 1),
        ([3.0, 1.0, 1.0], 1),
        ([None, 2.0], 1),
        ([math.nan, 2.0, math.nan], 1),
        ([math.inf, 2.0], 1),
        ([math.inf], 0),
        ([1.0, 0.0], 1),
        ([None, math.nan], None),
        ([], None),
    ],
)
def test_the_best_record_has_the_lowest_L(values, best):
    """The earliest of equals; None and NaN never win, and 0 is a number."""
    records = [record(i, L, perplexity=1.0) for i, L in enumerate(values)]
    assert best_record(records) is (None if best is None else records[best])


def test_the_summary_says_what_the_spending_after_the_best_L_bought():
    """Spent in all, for the best, and after that."""
    spent, best, after = spending_summary(RUN).splitlines()
    assert spent == (
        "spent: 4.50M tokens, 4.00 h of device time, 1.25 kWh; "
        "model FLOPs utilisation 25.6% of the peak, busy 50%"
    )
    assert best == "best L 6.0000 at step 20, for 3.00M tokens, 2.00 h of device time"
    assert after == (
        "after that, +50% tokens and +100% device hours changed perplexity by -3.2% "
        "(6.2000 to 6.0000) and L by +10.0%"
    )


def test_a_run_that_was_best_at_its_end_may_go_on():
    """More spending may be worth it."""
    assert spending_summary(RUN[:2]).splitlines()[-1].startswith("L was still falling at the end")


def test_one_validation_alone_is_not_called_falling():
    """A trend takes two points."""
    summary = spending_summary(RUN[:1])
    assert summary.splitlines()[1].startswith("best L 9.0000 at step 10")
    assert "falling" not in summary


def test_without_an_L_the_summary_says_why():
    """The reason is the score's own."""
    summary = spending_summary([record(1, missing=("energy_kwh: unavailable: no counter",))])
    assert summary.splitlines()[1] == "no L was scored: energy_kwh: unavailable: no counter"


def test_where_every_L_is_nan_the_summary_says_so():
    """No reason is missing where nothing was missing."""
    last = spending_summary([record(1, math.nan, perplexity=math.nan)]).splitlines()[-1]
    assert re.search(r"\bNaN\b|not a number", last)


def test_a_summary_without_measures_is_a_whole_sentence():
    """Where neither tokens nor time are known, nothing is said of them."""
    summary = spending_summary([record(1, 5.0), record(2, 6.0)])
    assert "after that,  " not in summary
    assert summary.startswith("spent: - tokens, - of device time")


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (2.5e9, "2.50B"),
        (3e12, "3.00T"),
        (7e16, "70000.00T"),
    ],
)
def test_tokens_are_short(tokens, text):
    """Three digits and a unit."""
    assert text in validation_table([record(1, tokens=tokens)]).split()


AMOUNTS = st.none() | st.floats(0, 1e30)
VALUES = st.none() | st.floats(0) | st.sampled_from([math.nan, 0.0, 1.0])
RECORDS = st.builds(
    lambda p, d, a, h, m: Record(
        run="a", batch=1, step=1, epoch=0, time="", formula={},
        measurements=Measurements(**m), score=Score(perplexity=p, f_D=d, f_A=a, f_H=h),
    ),
    VALUES, VALUES, VALUES, VALUES,
    st.fixed_dictionaries(
        dict.fromkeys(("tokens", "train_hours", "device_hours", "energy_kwh", "mfu"), AMOUNTS)
    ),
)  # fmt: skip


@settings(max_examples=100)
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_any_record_can_be_reported(records):
    """No combination of None, NaN, infinity and 0 is an exception."""
    assert len(validation_table(records).splitlines()) == 1 + len(records)
    assert spending_summary(records)


def test_a_scored_run_reads_well():
    """With a real formula, from measurements to text."""
    formula = Formula(D=Factor("tokens", 1e6, weight=0.1))
    m = Measurements(perplexity=20.0, tokens=10**6)
    one = Record(
        run="a", batch=1, step=5, epoch=0, time="", measurements=m, score=formula.score(m),
        formula=formula.to_dict(),
    )  # fmt: skip
    assert "best L 20.0000 at step 5, for 1.00M tokens" in spending_summary([one])


EXPECTED = Prediction(
    best_L=5.5, best_L_low=5.0, best_L_high=6.0, growth=2.0, growth_low=1.5, growth_high=3.0,
    horizon=5.0,
)  # fmt: skip


def test_what_is_expected_is_said_as_long_as_it_lies_ahead():
    """Marked as an expectation, with its intervals and what it supposes."""
    last = replace(RUN[-1], prediction=EXPECTED)
    text = spending_summary([*RUN[:-1], last])
    assert (
        "expected, if the learning rate goes on as so far: best L 5.5000 (5.0000 to 6.0000) at "
        "2 (1.5 to 3) times what is spent now" in text
    )
    behind = replace(RUN[-1], prediction=replace(EXPECTED, growth=0.5))
    assert "expected" not in spending_summary([*RUN[:-1], behind])
    without = replace(last, prediction=Unpredictable(reason="Too short."))
    assert expectation(without).endswith(": Too short.")
    assert expectation(RUN[-1]) == ""


# ---------------------------------------------------------------- devices

TWO = {
    "GPU-1": DeviceUse(busy_fraction=0.9, power_watts=612.34, energy_kwh=1.5, coverage=1.0),
    "GPU-2": DeviceUse(busy_fraction=0.4, coverage=0.975),
}
NAMED = (
    OccupiedDevice(
        key="GPU-2", name="H100", kind="cuda", dtype="float32", peak_flops=None, peak_source=""
    ),
)


def test_devices_stand_in_a_table_with_the_least_busy_first():
    """What nobody measured has no column, what one device lacks is a dash."""
    head, names, *lines = device_table(replace(RUN[0], hardware=TWO, devices=NAMED)).splitlines()
    assert head == "Devices in training, since the run began:"
    assert names.split() == ["busy", "energy", "power", "sampled"]
    assert re.split(r"\s\s+", lines[0].strip()) == ["H100", "GPU-2", "40.0%", "-", "-", "97.5%"]
    assert re.split(r"\s\s+", lines[1].strip()) == [
        "before a resume", "GPU-1", "90.0%", "1.5 kWh", "612.3 W", "100.0%",
    ]  # fmt: skip


def test_of_many_devices_those_that_were_busy_least_are_shown():
    seen = {
        f"GPU-{i}": DeviceUse(busy_fraction=i / 100) for i in reversed(range(SHOWN_DEVICES + 3))
    }
    lines = device_table(replace(RUN[0], hardware=seen)).splitlines()
    assert [line.split()[3] for line in lines[2:-1]] == [f"GPU-{i}" for i in range(SHOWN_DEVICES)]
    assert lines[-1] == "   and 3 more, which were busy for more of the time"


def test_without_readings_there_is_no_table():
    assert (
        device_table(RUN[0]) == device_table(replace(RUN[0], hardware={"cpu": DeviceUse()})) == ""
    )
