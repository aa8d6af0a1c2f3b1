"""What one validation loader on one rank adds up."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_lscore.heldout.evaluation import Evaluation
from lightning_lscore.heldout.held_out import HeldOut

CPU = torch.device("cpu")


def test_bytes_are_those_of_the_counted_labels():
    """Ignored positions have none."""
    seen = []
    held_out = HeldOut(-100, CPU, lambda ids: seen.append(ids.tolist()) or 10 * len(ids))
    held_out.update(torch.zeros(2, 3, 8), torch.tensor([[1, 2, -100], [-100, 3, 4]]))
    held_out.update(torch.zeros(1, 2, 8), torch.tensor([[5, 6]]))
    assert seen == [[1, 2, 3, 4], [5, 6]]
    nll, tokens, count, _, longest = held_out.numbers()
    assert (nll, tokens, count, longest) == (pytest.approx(6 * math.log(8)), 6, 60, 2)


def test_a_batch_without_rows_or_labels_counts_nothing():
    """A rank may get no data."""
    held_out = HeldOut(-100, CPU)
    held_out.update(torch.zeros(0, 3, 8), torch.zeros(0, 3, dtype=torch.long))
    assert held_out.numbers() == [0, 0, 0, 0, 0]
    held_out.update(torch.zeros(1, 3, 8), torch.full((1, 3), -100))
    assert held_out.numbers() == [0, 0, 0, 0, 0]


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
    with pytest.raises(ValueError, match=r"expected logits .* and labels .*, got"):
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


def test_a_function_of_bytes_that_raises_leaves_the_rest_as_it_is():
    """Bits per byte are an extra: their sum is unknown from then on, and nothing else."""
    calls = []

    def count(ids):
        calls.append(len(ids))
        raise KeyError("no such token")

    held_out = HeldOut(-100, torch.device("cpu"), count)
    for _ in range(2):
        held_out.update(torch.zeros(1, 3, 8), torch.tensor([[1, 2, -100]]))
    nll, tokens, bytes_, _, _ = held_out.numbers()
    assert (round(nll, 6), tokens) == (round(4 * math.log(8), 6), 4)
    assert math.isnan(bytes_)
    assert calls == [2]
    evaluation = Evaluation.over_ranks([[held_out.numbers()]], "a test", with_bytes=True)
    assert evaluation.bytes is None
    assert evaluation.bits_per_byte is None
