"""The sum over ranks of a pass over the held-out set."""

from __future__ import annotations

import math

import pytest

from lightning_lscore.equation.evidence import EvaluationSet
from lightning_lscore.heldout.evaluation import Evaluation

EVALUATION = Evaluation((30.0, 50.0), (10, 30), "the output's logits")


def test_perplexity_is_over_all_tokens_of_all_loaders():
    """Loaders weigh by their tokens, and each has a perplexity of its own."""
    assert EVALUATION.nll == 2.0
    assert EVALUATION.perplexity == math.exp(2)
    assert EVALUATION.perplexities == (math.exp(3), math.exp(50 / 30))
    assert EVALUATION.total_tokens == 40


def test_an_evaluation_without_tokens_is_nan_and_does_not_blame_the_logits():
    """Empty is NaN, never 0, and the provenance says that nothing was counted."""
    empty = Evaluation((0.0,), (0,), "logits")
    assert math.isnan(empty.perplexity)
    assert math.isnan(empty.perplexities[0])
    assert "logit was NaN" not in empty.provenance()


@pytest.mark.parametrize(
    ("nll", "why"), [(math.nan, "NaN because a logit"), (math.inf, "infinite because"), (1.0, "")]
)
def test_the_provenance_says_what_is_wrong_with_a_perplexity(nll, why):
    """Where logits were found, and why the result is no number."""
    provenance = Evaluation((nll, 1.0), (1, 1), "the output's logits").provenance()
    assert provenance.startswith("measured: the output's logits")
    assert why in provenance
    assert (";" in provenance) == bool(why)


def test_an_nll_beyond_a_float_keeps_its_value():
    """800 nats a token are infinite as a perplexity only."""
    huge = Evaluation((8000.0,), (10,), "logits")
    assert (huge.nll, huge.perplexity) == (800.0, math.inf)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("nll", "counted", "expected"),
    [((8.0,), (4,), 2 / math.log(2)), ((8.0, 4.0), (4, 8), 1 / math.log(2)), ((8.0,), (0,), None)],
)
def test_bits_per_byte_are_over_all_bytes_of_all_loaders(nll, counted, expected):
    """None without a byte, as without a count of them."""
    evaluation = Evaluation(nll, tuple(1 for _ in nll), "logits", counted)
    assert evaluation.bits_per_byte == pytest.approx(expected)
    assert Evaluation(nll, tuple(1 for _ in nll), "logits").bits_per_byte is None


@pytest.mark.parametrize("nll", [math.nan, math.inf])
def test_bits_per_byte_are_absent_where_the_nll_is_no_number(nll):
    """The perplexity shows what went wrong; a measure other than it must be finite."""
    assert Evaluation((nll,), (1,), "logits", (4,)).bits_per_byte is None


def test_the_sum_over_ranks_is_exact():
    """NLL and counts add, the fingerprint adds modulo 2^40, the longest is the largest."""
    parts = [[[1.5, 3, 12, 2**40 - 1, 7]], [[2.5, 4, 13, 3, 9]]]
    whole = Evaluation.over_ranks(parts, "logits", with_bytes=True)
    assert (whole.nll_sums, whole.tokens, whole.bytes) == ((4.0,), (7,), (25,))
    assert (whole.fingerprints, whole.longest) == (("0000000002",), (9,))


def test_a_summary_is_what_a_record_says_of_the_set():
    """Perplexities instead of sums, everything else as it is."""
    evaluation = Evaluation((30.0, 50.0), (10, 30), "logits", (9, 8), ("a", "b"), (4, 5))
    assert evaluation.summary() == EvaluationSet(
        tokens=(10, 30),
        perplexities=(math.exp(3), math.exp(50 / 30)),
        source="logits",
        bytes=(9, 8),
        fingerprints=("a", "b"),
        longest=(4, 5),
    )
    assert EVALUATION.summary().bytes is None
