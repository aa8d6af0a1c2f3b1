"""What goes wrong while LScore listens never reaches the validation step that it listens to."""

from __future__ import annotations

import pytest
import torch
from conftest import PlainLM, loader, tiny_llama
from torch.nn import functional as F

from lightning_lscore.heldout.capture import Capture
from lightning_lscore.heldout.perplexity import Perplexity


def call_with_labels(model, batch):
    return model.inner(**batch).loss


def compute_the_loss(model, batch):
    logits = model(batch["input_ids"])[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())


def log_the_loss(model, batch):
    loss = compute_the_loss(model, batch)
    model.log("val_loss", loss)
    return loss


@pytest.mark.parametrize(
    ("listener", "step"),
    [
        ("listening._logits_of", call_with_labels),
        ("capture.Capture._after_forward", call_with_labels),
        ("loss_call.LossCalls.enter", call_with_labels),
        ("loss_call.measure_rows", compute_the_loss),
        ("loss_call.LossCalls._on_embedding", compute_the_loss),
        ("loss_call.LossCalls._on_log", log_the_loss),
    ],
)
def test_the_step_goes_on_to_its_end_and_the_error_comes_after_it(listener, step, monkeypatch):
    """Once it is mended, the next batch is scored as any."""

    def fails(*args):
        raise ZeroDivisionError("a mistake")

    model, (batch,) = PlainLM(), loader(4)
    model.inner, model.log = tiny_llama(), lambda name, value: None
    expected = float(step(model, batch).detach())
    capture, sums = Capture(), Perplexity()
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(f"lightning_lscore.heldout.{listener}", fails)
        capture.attach(model)
        capture.start_batch(batch, sums)
        loss = step(model, batch)
        assert float(loss) == pytest.approx(expected)
        with pytest.raises(ZeroDivisionError, match="a mistake"):
            capture.end_batch(model, loss, batch)
        assert sums.count == 0
    with torch.no_grad():
        capture.attach(model)
        capture.start_batch(batch, sums)
        capture.end_batch(model, step(model, batch), batch)
        capture.detach()
    assert (float(sums.nll()), sums.count) == (pytest.approx(expected, rel=1e-5), 4 * 11)
