"""What the model needs for a token, when that changes in the middle of a run."""

from __future__ import annotations

import pytest
import torch
from conftest import HuggingFaceLM, PlainLM, loader, tiny_llama
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn

from lightning_lscore import LScore
from lightning_lscore.model.flops import flops_of
from lightning_lscore.run.architecture import Architecture
from lightning_lscore.run.arithmetic import Arithmetic


def begun(model, given=None):
    architecture = Architecture(model, given)
    architecture.begin(model)
    return Arithmetic(architecture)


def frozen_and_whole(model):
    """FLOP of a token of 12, with the layers frozen and without."""
    whole = flops_of(model).at(12)
    model.requires_grad_(False)
    frozen = flops_of(model).at(12)
    return frozen, whole


def test_a_change_at_a_validation_splits_the_tokens_there():
    """Before the first step that follows, as callbacks make it, or in that step."""
    model = tiny_llama()
    frozen, whole = frozen_and_whole(model)
    made = begun(model)
    made.begin_step(0)
    made.begin_step(1)
    made.look({12: 100}, 4)
    made.begin_step(4)
    model.requires_grad_(True)
    made.begin_step(5)
    assert made.total({12: 150}) == pytest.approx(100 * frozen + 50 * whole)
    made.look({12: 150}, 6)
    assert made.total({12: 200}) == pytest.approx(100 * frozen + 100 * whole)
    assert made.convention.endswith("; other parameters learn since batch 4")


def test_half_of_the_tokens_count_either_way_where_a_change_lies_between_two_looks():
    """And the record says between which."""
    model = tiny_llama()
    frozen, whole = frozen_and_whole(model)
    made = begun(model)
    made.look({12: 100}, 4)
    made.begin_step(4)
    made.begin_step(5)
    model.requires_grad_(True)
    made.look({12: 200}, 8)
    assert made.total({12: 250}) == pytest.approx(150 * frozen + 100 * whole)
    assert "since some batch from 4 to 8, half of whose tokens count either way" in made.convention


def test_a_number_that_was_given_counts_throughout():
    model = tiny_llama().requires_grad_(False)
    made = begun(model, 7.0)
    made.look({12: 100}, 4)
    model.requires_grad_(True)
    made.begin_step(4)
    made.look({12: 200}, 8)
    assert made.total({12: 200}) == 1400
    assert made.convention == "FLOP per token as given"


def step(made, model, batch, width):
    """One step of 6 tokens of width ``width``, in a row."""
    made.begin_step(batch)
    model(torch.rand(6, width)).sum().backward()
    if made.step is not None:
        made.end_step({6: 6})


def test_a_model_that_was_counted_is_counted_again_when_it_changes():
    """Its tokens since then count by the new count."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].requires_grad_(False)
    made = begun(model)
    assert made.assumed.startswith("counted in the next training step; an estimate guesses: attent")
    step(made, model, 0, 8)
    below, above = 2 * 64, 4 * 32  # nothing that learns lies below the second
    assert made.total({6: 60}) == 60 * (below + above)
    made.look({6: 60}, 10)
    model.requires_grad_(True)
    step(made, model, 10, 8)
    assert made.total({6: 120}) == 60 * (below + above) + 60 * (4 * 64 + 6 * 32)
    assert made.assumed.startswith("products counted in one step of 6 tokens (sequences of 6)")


def test_steps_without_a_backward_pass_are_not_taken_for_training():
    """The next one is counted instead, and after some the count of the forward pass stays."""
    model = nn.Linear(8, 4, bias=False)
    made = begun(model)
    for _ in range(3):
        made.begin_step(0)
        model(torch.rand(6, 8))
        made.end_step({6: 6})
    assert made.assumed.startswith("counted in the next training step")
    step(made, model, 3, 8)
    assert made.total({6: 6}) == 6 * 4 * 32
    forward = begun(model)
    for i in range(8):
        forward.begin_step(i)
        model(torch.rand(6, 8))
        forward.end_step({6: 6})
    assert forward.total({6: 6}) == 6 * 2 * 32
    assert "without a backward pass" in forward.convention


def test_a_counter_does_not_outlive_the_run():
    made = begun(nn.Linear(8, 4))
    made.begin_step(0)
    made.stop()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


class Unfreeze(BaseFinetuning):
    """Everything but the output layer, before the second epoch."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.body = body

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.get_submodule(self.body))

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.make_trainable(pl_module.get_submodule(self.body))


@pytest.mark.parametrize("body", ["model.model", "embedding"])
def test_a_fit_that_unfreezes_counts_each_epoch_as_it_was_trained(trainer, body):
    """A model of transformers by its structure; one by hand in a step of each epoch."""
    model = HuggingFaceLM() if body == "model.model" else PlainLM()
    frozen, whole = 4.0 * 16 * 32, 6.0 * 16 * 32  # by hand: the gradient to the embedding
    if body == "model.model":
        whole = flops_of(model).at(12)
        model.model.model.requires_grad_(False)
        frozen = flops_of(model).at(12)
        model.requires_grad_(True)
    lscore = LScore()
    trainer(Unfreeze(body), lscore, max_epochs=2).fit(model, loader(8), loader(4))
    measured = lscore.last_record.measurements
    assert measured.model_flops == pytest.approx(8 * 12 * (frozen + whole))
    assert "since batch 2" in measured.provenance["model_flops"]


def test_a_resumed_run_keeps_what_it_has_spent(trainer, tmp_path):
    """The tokens before the checkpoint do not count as those after it."""

    class Save(Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "end.ckpt")

    model, lscore = HuggingFaceLM(), LScore()
    model.model.model.requires_grad_(False)
    trainer(lscore, Save()).fit(model, loader(8), loader(4))
    frozen = lscore.last_record.measurements.model_flops
    model.requires_grad_(True)
    again = LScore()
    trainer(again, max_epochs=2).fit(model, loader(8), loader(4), ckpt_path=tmp_path / "end.ckpt")
    whole = 8 * 12 * flops_of(model).at(12)
    assert again.last_record.measurements.model_flops == pytest.approx(frozen + whole)
