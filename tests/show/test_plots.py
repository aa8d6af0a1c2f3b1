from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
from matplotlib.image import imread

from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.score import Score
from lightning_lscore.record.file import append_record
from lightning_lscore.record.record import Record
from lightning_lscore.show.plots import plot_run


def record(step, perplexity=10.0, f_D=1.1, tokens=None):
    return Record(
        run="a",
        batch=step,
        step=step,
        epoch=0,
        time="",
        measurements=Measurements(perplexity=perplexity, tokens=tokens),
        score=Score(perplexity=perplexity, f_D=f_D, f_A=0.9, f_H=1.0),
        formula=Formula().to_dict(),
    )


RUN = [record(i, 30.0 / i, 0.9 + i / 10, 1000 * i) for i in range(1, 5)]


def colours(path):
    """How many different colours a picture has."""
    pixels = imread(path)[..., :3]
    return len({tuple(p) for row in pixels[::7] for p in row[::3].tolist()})


def test_a_run_is_drawn(tmp_path):
    """The picture has lines, text and colours in it."""
    path = tmp_path / "run.png"
    plot_run(RUN, path)
    height, width = imread(path).shape[:2]
    assert (height, width) == (1050, 1200)
    assert colours(path) > 20


@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_says_the_format(tmp_path, ending, begins):
    """Vector formats work as well as pixels."""
    path = tmp_path / f"run.{ending}"
    plot_run(RUN, str(path))
    assert path.read_bytes().startswith(begins)


ODD = {
    "one record": RUN[:1],
    "no L": [record(1, f_D=None, tokens=5), record(2, f_D=None, tokens=6)],
    "no perplexity": [record(1, None, None, 5), record(2, None, None, 6)],
    "NaN": [record(1, math.nan, 1.0, 5), record(2, 3.0, 1.0, 6)],
    "only NaN": [record(1, math.nan, math.nan, 5)],
    "infinity": [record(1, math.inf, 1.0, 5), record(2, 3.0, 1.0, 6)],
    "only infinity": [record(1, math.inf, 1.0, 5)],
    "zero": [record(1, 10.0, 0.0, 0), record(2, 10.0, 1.0, 5)],
    "twice the same tokens": [record(1, tokens=5), record(2, tokens=5)],
    "some without tokens": [record(1), *RUN],
    "a huge range": [record(1, 1e30, 1.0, 1), record(2, 1.0, 1.0, 10**18)],
}


@pytest.mark.parametrize("records", ODD.values(), ids=ODD)
def test_odd_records_are_drawn_without_a_warning(tmp_path, records):
    """Values that are missing or no numbers leave gaps."""
    plot_run(records, tmp_path / "run.png")
    assert colours(tmp_path / "run.png") > 5


def test_validations_whose_L_does_not_compare_are_left_out(tmp_path):
    """A line through L of two formulas would show a step that is none."""
    other = replace(record(1, 99.0, tokens=500), formula=Formula(D=2.0).to_dict())
    for name, run in (("mixed", [other, *RUN]), ("alone", RUN)):
        plot_run(run, tmp_path / f"{name}.png")
    assert (tmp_path / "mixed.png").read_bytes() == (tmp_path / "alone.png").read_bytes()


@pytest.mark.parametrize("records", [[], [record(1), record(2)]])
def test_without_tokens_there_is_nothing_to_draw_over(tmp_path, records):
    """The error says what was expected, and no file is left."""
    with pytest.raises(ValueError, match=r"expected records with training tokens .* got none"):
        plot_run(records, tmp_path / "run.png")
    assert not any(tmp_path.iterdir())


def test_pyplot_is_left_alone(tmp_path):
    """Drawing neither imports pyplot nor chooses a backend, so no display is needed."""
    for one in RUN:
        append_record(tmp_path / "lscore.jsonl", one)
    program = (
        "import sys\n"
        "from lightning_lscore import read_records\n"
        "from lightning_lscore.show.plots import plot_run\n"
        f"plot_run(read_records({str(tmp_path)!r}), {str(tmp_path / 'run.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert colours(tmp_path / "run.png") > 20
