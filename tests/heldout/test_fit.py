"""How labels lie in the tokens that were read."""

from __future__ import annotations

import pytest
import torch

from lightning_lscore.heldout.fit import Fit, distinct, fit_of, read_to_the_end, with_joined

READ = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
MANY = 40
CASES = {
    "the tokens after": (READ[:, 1:], MANY, Fit.NEXT),
    "padded at the end": (torch.cat([READ[:, 1:], READ.new_full((2, 1), -100)], 1), MANY, Fit.NEXT),
    "behind a prefix": (torch.cat([READ.new_full((2, 2), -100), READ], 1)[:, 1:], MANY, Fit.SAME),
    "with an end of text": (torch.cat([READ[:, 1:], READ.new_full((2, 1), 2)], 1), MANY, Fit.NEXT),
    "in place": (READ, MANY, Fit.SAME),
    "the last two": (READ[:, 2:], MANY, Fit.END),
    "the second after": (READ[:, 2:].clone().fill_(3), MANY, Fit.NONE),
    "something else": (READ + 7, MANY, Fit.NONE),
    "in place of few words": (READ, 5, Fit.NONE),
    "half of few words": (torch.tensor([[6, 7, 1], [10, 1, 1]]), 5, Fit.NONE),
    "half of many words": (torch.tensor([[6, 7, 1], [10, 1, 1]]), MANY, Fit.NEXT),
}


@pytest.mark.parametrize(("labels", "classes", "expected"), CASES.values(), ids=CASES)
def test_the_fit_of_labels(labels, classes, expected):
    assert fit_of(labels, READ, classes) is expected


def test_positions_and_repetitions_are_no_text():
    positions = torch.arange(4).expand(2, 4)
    kept = distinct([READ, READ.clone(), positions, READ[0], torch.zeros(2, 2, 2).long()])
    assert [tensor.shape for tensor in kept] == [(2, 4), (4,)]


def test_what_is_read_in_parts_is_joined():
    assert [len(tensor) for tensor in with_joined([READ, READ + 1, READ[:, :2]])] == [2, 2, 2, 4]


def test_the_last_token_is_only_predicted():
    whole = torch.cat([READ, READ[:, :1]], 1)
    for batch in (whole, whole[:, 1:]):
        (found,) = read_to_the_end([READ], [batch, READ + 3])
        assert torch.equal(found, whole)
