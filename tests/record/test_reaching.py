from __future__ import annotations

import math

import pytest
from samples import held_out, record

from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.reaching import evaluated_alike, lowest, spending_to


def run(*points, **changes):
    return [
        record(
            i,
            measurements=Measurements(perplexity=T, tokens=tokens, device_hours=tokens / 100),
            evaluation=held_out(fingerprints=("a",)),
            **changes,
        )
        for i, (T, tokens) in enumerate(points, 1)
    ]


CURVE = run((20.0, 100), (10.0, 200), (5.0, 400), (6.0, 800))


def test_the_lowest_perplexity_is_that_of_its_first_validation():
    assert lowest(CURVE).record.batch == 3
    assert lowest([*CURVE, *run((5.0, 900))]).record.batch == 3
    assert lowest(run((math.nan, 1), (math.inf, 2))) is None


def test_spending_is_interpolated_where_the_curve_first_crosses():
    """Linear in ln T between two validations."""
    halfway = (math.log(20) + math.log(10)) / 2
    assert spending_to(CURVE, halfway) == pytest.approx({"tokens": 150.0, "device_hours": 1.5})
    assert spending_to(CURVE, math.log(5)) == {"tokens": 400.0, "device_hours": 4.0}
    assert spending_to(CURVE, math.log(4)) is None
    assert spending_to(CURVE, math.log(30))["tokens"] == 100.0


def test_validations_on_another_set_than_the_last_do_not_count():
    """They would look better or worse than they are."""
    other = run((2.0, 50))
    other = [
        record(
            0,
            measurements=other[0].measurements,
            evaluation=held_out(fingerprints=("b",)),
        )
    ]
    assert len(evaluated_alike([*other, *CURVE])) == 4
    assert lowest([*other, *CURVE]).ln_T == pytest.approx(math.log(5))


def test_nominal_tokens_are_told_by_their_bytes():
    """Perplexities of two tokenizers do not compare."""
    m = Measurements(perplexity=9.0, bits_per_byte=1.5, tokens=10)
    one = [record(1, measurements=m, evaluation=held_out(bytes=(7,)))]
    assert lowest(one, "nominal_perplexity").ln_T == pytest.approx(math.log(2**6))
