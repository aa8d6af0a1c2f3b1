"""Which label is ignored is declared, stated by a loss call, or read off the module's own loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_lscore.heldout.ignored import Ignored
from lightning_lscore.heldout.loss_call import LossCall

LABELS = torch.tensor([[0, -1, -100, 7], [5, 0, 7, 7]])
CALL = LossCall(LABELS, classes=40, ignore_index=7)


@pytest.mark.parametrize(
    ("declared", "modules", "calls", "ignored", "says"),
    [
        (None, [], [], [-1, -100], "-100 ignored by convention"),
        (None, [nn.NLLLoss(ignore_index=0)], [], [-1, -100, 0], "0 ignored as the module's loss"),
        (None, [nn.NLLLoss(ignore_index=0)], [CALL], [-1, -100, 7], "7 ignored as the loss call"),
        (5, [], [CALL], [5], "5 ignored as declared"),
    ],
)
def test_the_first_evidence_counts(declared, modules, calls, ignored, says):
    known = Ignored(declared)
    known.look_into(nn.ModuleList(modules))
    marked, how = known.mark(LABELS, calls)
    assert how.startswith(says)
    assert torch.equal(marked == known.index, torch.isin(LABELS, torch.tensor(ignored)))


def test_losses_that_ignore_different_labels_are_said_only_where_no_call_states_it():
    known = Ignored(None)
    known.look_into(nn.ModuleList([nn.NLLLoss(ignore_index=0), nn.NLLLoss(ignore_index=5)]))
    known.mark(LABELS, [CALL])
    known.mark(LABELS, own=False)
    assert known.doubts == []
    assert known.mark(LABELS)[1] == "-100 ignored by convention"
    assert ["LScore(ignore_index=...)" in doubt for doubt in known.doubts] == [True]


def test_a_declared_label_that_the_loss_does_not_ignore_is_said():
    known = Ignored(-100)
    known.mark(LABELS, [CALL])
    assert ["ignores 7, which LScore counts" in doubt for doubt in known.doubts] == [True]


@pytest.mark.parametrize("rows", [4, 3])
def test_shifted_labels_ignore_what_the_loss_call_of_them_ignores(rows):
    stated = torch.tensor([[1, -100, 3, 4], [1, 2, -100, 4]])[:, :rows]
    labels = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    marked = Ignored(None).as_stated(labels, LossCall(stated.flatten(), 40, -100))
    expected = torch.full_like(labels, -100)
    expected[:, :rows] = stated
    assert torch.equal(marked, expected)
