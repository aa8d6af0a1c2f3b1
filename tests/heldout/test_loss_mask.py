"""What a step leaves out of a loss that it reduces itself."""

from __future__ import annotations

import pytest
import torch
from test_own_loss import ROWS, F, Model, X, Y, by_hand, captured, sums
from torch import nn

from lightning_lscore.heldout.capture import Capture
from lightning_lscore.heldout.perplexity import Perplexity

KEEP = torch.rand(Y.shape, generator=torch.Generator().manual_seed(5)) < 0.7
PADDED = ROWS.clone()
for _row in range(len(PADDED)):
    PADDED[_row, 4 + _row % 4 :] = 0


def losses(model, ids, **options):
    values = F.cross_entropy(
        model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none", **options
    )
    return values.view(len(ids), -1)


def mean(values, keep):
    return (values * keep).sum() / keep.sum()


def masked(model, b):
    return mean(losses(model, b["input_ids"]), b["loss_mask"])


def in_a_tuple(model, b):
    return mean(losses(model, b[0]), b[1])


BATCHES = {
    "named": (masked, {"input_ids": ROWS, "loss_mask": KEEP.long()}),
    "beside a mask of padding": (
        masked,
        {"input_ids": ROWS, "attention_mask": torch.ones_like(ROWS), "loss_mask": KEEP.float()},
    ),
    "of the tokens": (
        lambda m, b: mean(losses(m, b["input_ids"]), b["loss_mask"][:, 1:]),
        {"input_ids": ROWS, "loss_mask": F.pad(KEEP.long(), (1, 0))},
    ),
    "in a tuple": (in_a_tuple, (ROWS, KEEP.long())),
    "smoothed": (
        lambda m, b: mean(losses(m, b[0], label_smoothing=0.2), b[1]),
        (ROWS, KEEP.bool()),
    ),
    "selected": (lambda m, b: losses(m, b[0]).masked_select(b[1] != 0).mean(), (ROWS, KEEP.long())),
}


@pytest.mark.parametrize(("step", "batch"), BATCHES.values(), ids=BATCHES)
def test_the_mask_of_the_batch_is_proved_by_the_loss(step, batch):
    found, capture = captured(step, batch)
    assert sums(found) == by_hand(Model()(X), Y.masked_fill(~KEEP, -100))
    assert capture.doubts == []


@pytest.mark.parametrize("step", [masked, in_a_tuple])
def test_without_a_loss_it_is_taken_and_said(step):
    batch = BATCHES["named" if step is masked else "in a tuple"][1]
    found, capture = captured(lambda m, b: step(m, b) and None, batch)
    assert sums(found) == by_hand(Model()(X), Y.masked_fill(~KEEP, -100))
    assert ["Return the loss" in doubt for doubt in capture.doubts] == [True]


def padding(model, b):
    return mean(losses(model, b), b[:, 1:] != 0)


def test_padding_is_left_out_as_the_loss_says():
    found, capture = captured(padding, PADDED)
    assert sums(found) == by_hand(
        Model()(PADDED[:, :-1]), PADDED[:, 1:].masked_fill(PADDED[:, 1:] == 0, -100)
    )
    assert (capture.doubts, "labels of 0" in capture.source) == ([], True)


def test_all_labels_count_where_their_mean_is_the_loss():
    found, capture = captured(lambda m, b: losses(m, b).mean(), PADDED)
    assert (found.count, capture.doubts) == (Y.numel(), [])


def test_what_nothing_explains_is_said():
    weights = torch.rand(Y.shape)
    found, capture = captured(lambda m, b: mean(losses(m, b), weights), ROWS)
    assert found.count == Y.numel()
    assert ["no loss that it returned or logged is their mean" in d for d in capture.doubts] == [
        True
    ]


@pytest.mark.parametrize("log", [lambda m, x: m.log("loss", x), lambda m, x: m.log_dict({"a": x})])
def test_a_logged_loss_proves_as_much(log):
    class Logs(Model):
        def log(self, name, value):
            """Stands for that of a LightningModule."""

        def log_dict(self, values):
            """Stands for that of a LightningModule."""

    found, capture = captured(lambda m, b: log(m, padding(m, b)), PADDED, Logs())
    assert found.count == int((PADDED[:, 1:] != 0).sum())
    assert capture.doubts == []


def test_the_padding_index_of_an_embedding_is_taken_and_said():
    model = Model()
    model.embedding.padding_idx = 0
    found, capture = captured(lambda m, b: padding(m, b) and None, PADDED, model)
    assert found.count == int((PADDED[:, 1:] != 0).sum())
    assert ["the padding index" in doubt for doubt in capture.doubts] == [True]


def test_what_a_module_logs_with_is_restored():
    class Logs(nn.Module):
        def log(self, name, value):
            """Stands for that of a LightningModule."""

        def log_dict(self, values):
            """Stands for that of a LightningModule."""

    module, capture = Logs(), Capture()
    before = dict(vars(module))
    capture.attach(module)
    capture.start_batch(ROWS, Perplexity())
    module.log("a", 1.0)
    assert capture._losses.logged == ["a", 1.0]
    capture.detach()
    assert dict(vars(module)) == before
