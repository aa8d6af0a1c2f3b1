"""Tokens and sequences are added up by length."""

from __future__ import annotations

import torch

from lightning_lscore.model.tally import Tally, length_of


def test_numbers_and_tensors_add_up_by_length():
    tally = Tally()
    tally.add(5, torch.Size([2, 3]))
    tally.add(torch.tensor(4), torch.Size([2, 3]))
    tally.add(7, torch.Size([7]), times=3)
    assert tally.by_length == {3: 9, 7: 21}
    assert tally.samples == 2 + 2 + 3


def test_a_single_token_has_length_one():
    assert (length_of(torch.Size([])), length_of(torch.Size([2, 5]))) == (1, 5)
