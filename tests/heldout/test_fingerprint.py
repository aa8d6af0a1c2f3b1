"""Which held-out set was counted: the same for the same sequences, another for any other set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.heldout.evaluation import Evaluation
from lightning_lscore.heldout.fingerprint import fingerprint
from lightning_lscore.heldout.held_out import HeldOut

CPU = torch.device("cpu")
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
