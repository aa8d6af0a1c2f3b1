"""What a pass over the held-out set counted, on one rank and over several."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.equation.evidence import EvaluationSet
from lightning_lscore.heldout.evaluation import Evaluation, HeldOut, fingerprint

EVALUATION = Evaluation((30.0, 50.0), (10, 30), "the output's logits")
CPU = torch.device("cpu")


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


def test_bytes_are_those_of_the_counted_labels():
    """Ignored positions have none."""
    seen = []
    held_out = HeldOut(-100, CPU, lambda ids: seen.append(ids.tolist()) or 10 * len(ids))
    held_out.update(torch.zeros(2, 3, 8), torch.tensor([[1, 2, -100], [-100, 3, 4]]))
    held_out.update(torch.zeros(1, 2, 8), torch.tensor([[5, 6]]))
    assert seen == [[1, 2, 3, 4], [5, 6]]
    nll, tokens, count, _, longest = held_out.numbers()
    assert (nll, tokens, count, longest) == (pytest.approx(6 * math.log(8)), 6, 60, 2)


# ---------------------------------------------------------------- which set it was

ROWS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=6)


def mark(rows, width=5, batch=6, ranks=1):
    """The fingerprint of an evaluation over ranks that take turns, in padded batches."""
    parts = []
    for rank in range(ranks):
        held_out, mine = HeldOut(-100, CPU), rows[rank::ranks]
        for i in range(0, len(mine), batch):
            padded = [row + [-100] * (width - len(row)) for row in mine[i : i + batch]]
            held_out.update(torch.zeros(len(padded), width, 10), torch.tensor(padded))
        parts.append([held_out.numbers()])
    return Evaluation.over_ranks(parts, "logits", with_bytes=False).fingerprints


@given(ROWS, st.randoms(), st.integers(5, 8), st.integers(1, 6), st.integers(1, 3))
def test_order_padding_batches_and_ranks_leave_the_fingerprint_alone(
    rows, rng, width, batch, ranks
):
    """The same sequences are the same set."""
    mixed = rng.sample(rows, len(rows))
    assert mark(mixed, width, batch, ranks) == mark(rows)


@given(ROWS, st.data())
def test_another_token_changes_the_fingerprint(rows, data):
    """Any one of them."""
    i = data.draw(st.integers(0, len(rows) - 1))
    j = data.draw(st.integers(0, len(rows[i]) - 1))
    other = [list(row) for row in rows]
    other[i][j] = 10 + other[i][j]
    before, after = (fingerprint(*labels(r)) for r in (rows, other))
    assert int(before) != int(after)


def labels(rows):
    padded = torch.tensor([row + [-100] * (5 - len(row)) for row in rows])
    return padded, padded != -100


@pytest.mark.parametrize(
    "other",
    [
        [[2, 1, 3, 4]],
        [[1, 2], [3, 4]],
        [[1, 2, 3]],
        [[1, 2, 3, 4], [1, 2, 3, 4]],
        [[1, 2, 3, 4, 0]],
    ],
    ids=["order", "cut elsewhere", "less", "twice", "a token more"],
)
def test_another_set_of_the_same_or_other_tokens_has_another_fingerprint(other):
    """The order within a sequence and its length count: they change the perplexity."""
    assert mark(other) != mark([[1, 2, 3, 4]])


def test_a_batch_without_rows_or_labels_counts_nothing():
    """A rank may get no data."""
    held_out = HeldOut(-100, CPU)
    held_out.update(torch.zeros(0, 3, 8), torch.zeros(0, 3, dtype=torch.long))
    assert held_out.numbers() == [0, 0, 0, 0, 0]
    held_out.update(torch.zeros(1, 3, 8), torch.full((1, 3), -100))
    assert held_out.numbers() == [0, 0, 0, 0, 0]


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


def test_logits_may_have_any_number_of_leading_dimensions():
    """The last dimension of labels is the sequence, however sequences are stacked."""
    logits = torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(24).view(2, 3, 4) % 9
    labels[1, 2, 1:] = -100
    expected = HeldOut(-100, CPU)
    for x, t in zip(logits.flatten(0, 1), labels.flatten(0, 1), strict=True):
        expected.update(x[None], t[None])
    for parts in (
        [(logits, labels)],
        [(logits.transpose(0, 1), labels.transpose(0, 1))],
        list(zip(logits, labels, strict=True)),
        list(zip(logits.flatten(0, 1), labels.flatten(0, 1), strict=True)),
    ):
        held_out = HeldOut(-100, CPU)
        for x, t in parts:
            held_out.update(x, t)
        nll, *rest = held_out.numbers()
        assert (nll, rest) == (pytest.approx(expected.numbers()[0]), expected.numbers()[1:])


def test_a_single_prediction_is_a_sequence_of_one():
    """Logits [V] of a label without dimensions."""
    single, batch = HeldOut(-100, CPU), HeldOut(-100, CPU)
    single.update(torch.arange(8.0), torch.tensor(3))
    batch.update(torch.arange(8.0)[None, None], torch.tensor([[3]]))
    assert single.numbers() == batch.numbers()
    assert single.numbers()[1:3] == [1, 0]


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 3), torch.zeros(()), torch.zeros(2, 4, 8)], ids=["nll", "mean", "time"]
)
def test_what_is_not_aligned_logits_is_refused(wrong):
    """NLL has a way in of its own, so that no shape is taken for another."""
    held_out = HeldOut(-100, CPU)
    with pytest.raises(ValueError, match=r"Expected logits .* and labels .*, got"):
        held_out.update(wrong, torch.zeros(2, 3).long())
    assert held_out.numbers() == [0, 0, 0, 0, 0]


def test_known_nll_counts_the_same_tokens():
    """Row by row or as one mean over the labels that count; bytes and fingerprint come along."""
    logits, labels = torch.zeros(2, 3, 8), torch.tensor([[1, 2, -100], [-100, 3, 4]])
    sums = []
    for nll in (None, torch.full((2, 3), math.log(8)), torch.tensor(math.log(8))):
        held_out = HeldOut(-100, CPU, len)
        if nll is None:
            held_out.update(logits, labels)
        else:
            held_out.update_nll(nll, labels)
        sums.append(held_out.numbers())
    assert sums[0][1:3] == [4, 4]
    for other in sums[1:]:
        assert other == [pytest.approx(sums[0][0]), *sums[0][1:]]
    with pytest.raises(ValueError, match="give logits to update"):
        held_out.update_nll(logits, labels)


def test_taking_in_a_batch_does_not_wait_for_a_gpu():
    """Tensors without data refuse whatever would look at their values."""
    labels = torch.zeros(2, 64, device="meta", dtype=torch.int64)
    held_out = HeldOut(-100, labels.device)
    for _ in range(2):
        held_out.update(torch.zeros(2, 64, 500, device="meta"), labels)
    with pytest.raises(RuntimeError, match="meta"):
        held_out.numbers()
