"""An LScore that the environment asked for is never in the way of a training."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import HuggingFaceLM, PlainLM, loader, run_python, tiny_llama
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_lscore import CostEarlyStopping, LScore, read_records
from lightning_lscore.environment import EnvironmentLScore

SAID = "found no language model in this training"


class Other(pl.LightningModule):
    """A training of ``net`` that is no language model's: batches of (x, y)."""

    def __init__(self, net: torch.nn.Module, *batches: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__()
        self.net, self.batches = net, batches

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def data(self):
        return DataLoader(self.batches, batch_size=None)

    train_dataloader = val_dataloader = data


class NamesItsLogits(Other):
    def validation_step(self, batch, batch_idx):
        return {"logits": self.net(batch[0]), "labels": batch[1]}


class Reconstructs(Other):
    def loss(self, batch):
        return F.mse_loss(self.net(batch[0]), batch[0])

    def validation_step(self, batch, batch_idx):
        return {"loss": self.loss(batch), "reconstruction": self.net(batch[0])}


class Regresses(Other):
    def loss(self, batch):
        return F.mse_loss(self.net(batch[0])[:, 0], batch[1].float())

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))


class Adversarial(Reconstructs):
    """Two optimizers, stepped by hand."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


def vectors(classes=5):
    return [(torch.randn(4, 8), torch.randint(classes, (4,))) for _ in range(3)]


def images():
    return [(torch.randn(2, 3, 6, 6), torch.randint(4, (2, 6, 6))) for _ in range(3)]


def classify_sequences():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16, num_labels=3,
    )  # fmt: skip

    class Sequences(Other):
        def loss(self, batch):
            return self.net(input_ids=batch[0], labels=batch[1]).loss

    rows = [(torch.randint(32, (4, 12)), torch.randint(3, (4,))) for _ in range(3)]
    return Sequences(BertForSequenceClassification(config), *rows)


def boring():
    model = BoringModel()
    model.data = model.train_dataloader
    return model


UNRELATED = {
    "classifier": lambda: Other(torch.nn.Linear(8, 5), *vectors()),
    "classifier that returns its logits": lambda: NamesItsLogits(torch.nn.Linear(8, 5), *vectors()),
    "autoencoder": lambda: Reconstructs(torch.nn.Linear(8, 8), *vectors()),
    "adversarial": lambda: Adversarial(torch.nn.Linear(8, 8), *vectors()),
    "regression": lambda: Regresses(torch.nn.Linear(8, 1), *vectors()),
    "segmentation": lambda: NamesItsLogits(torch.nn.Conv2d(3, 4, 1), *images()),
    "sequence classification": classify_sequences,
    "boring": boring,
}


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.WARNING, logger="lightning_lscore")
    return lambda: [m for m in caplog.messages if m.startswith("LSCORE is set")]


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("name", UNRELATED)
def test_a_training_that_is_no_language_model_goes_on_to_its_end(
    name, sanity, trainer, messages, tmp_path
):
    """One sentence says so; nothing is logged or written, and no checkpoint holds a state."""
    model, lscore = UNRELATED[name](), EnvironmentLScore()
    save = ModelCheckpoint(tmp_path, filename="end")
    t = trainer(lscore, save, max_epochs=2, num_sanity_val_steps=sanity)
    t.fit(model, model.data(), model.data())
    assert t.current_epoch == 2
    (said,) = messages()
    assert SAID in said
    assert "ways out" not in said
    assert not {"L", "perplexity"} & {*t.callback_metrics}
    assert not [*tmp_path.rglob("*.jsonl")]
    assert torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"].keys() == {
        save.state_key
    }
    t.validate(model, model.data(), verbose=False)
    assert len(messages()) == 1


def test_an_explicit_lscore_raises_as_ever(trainer):
    model = UNRELATED["classifier"]()
    with pytest.raises(ValueError, match="found no logits and labels"):
        trainer(LScore()).fit(model, model.data(), model.data())


@pytest.mark.parametrize("module", [PlainLM, HuggingFaceLM])
def test_a_language_model_is_scored_as_by_an_lscore_of_ones_own(module, trainer, tmp_path):
    """Its checkpoints go on with either."""
    save = ModelCheckpoint(tmp_path, save_last=True)
    t = trainer(EnvironmentLScore(), save)
    t.fit(module(), loader(16), loader(4))
    assert t.callback_metrics["L"] > 0
    (record,) = read_records(tmp_path)
    lscore = LScore()
    t = trainer(lscore, save, max_epochs=2)
    t.fit(module(), loader(16), loader(4), ckpt_path=save.last_model_path)
    assert (lscore.last_record.run, lscore.last_record.batch) == (record.run, 8)
    again = EnvironmentLScore()
    t = trainer(again, save, max_epochs=3)
    t.fit(module(), loader(16), loader(4), ckpt_path=save.last_model_path)
    assert (again.last_record.run, again.last_record.batch) == (record.run, 12)


@pytest.mark.parametrize(
    "method",
    ["start", "count", "start_evaluation", "score", "end_evaluation", "state_dict", "pause"],
)
def test_an_error_of_ours_ends_what_we_do_and_not_the_training(
    method, trainer, monkeypatch, messages, tmp_path
):
    def fails(self, *args, **kwargs):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(f"lightning_lscore.run.tracker.Tracker.{method}", fails)
    lscore, model = EnvironmentLScore(), PlainLM()
    t = trainer(lscore, ModelCheckpoint(tmp_path), max_epochs=2)
    t.fit(model, loader(16), loader(4))
    assert t.global_step == 8
    assert messages() == [
        "LSCORE is set, but LScore met an error (ZeroDivisionError: a mistake). It is silent for "
        "the rest of this run."
    ]
    with pytest.raises(ZeroDivisionError):
        trainer(LScore(), ModelCheckpoint(tmp_path), max_epochs=2).fit(
            PlainLM(), loader(16), loader(4)
        )


def test_what_goes_wrong_inside_of_a_step_does_not_reach_it(trainer, messages):
    """A validation of two models with labels ends nothing, and the module sees no error."""

    class Two(HuggingFaceLM):
        ended = 0

        def __init__(self):
            super().__init__()
            self.other = tiny_llama()

        def validation_step(self, batch, batch_idx):
            loss = self.model(**batch).loss + self.other(**batch).loss
            self.ended += 1
            self.log("val_loss", loss)

    model = Two()
    t = trainer(EnvironmentLScore(), max_epochs=2)
    t.fit(model, loader(16), loader(8))
    assert (t.global_step, model.ended) == (8, 4)
    (said,) = messages()
    assert "(ValueError: expected one language model to be called with labels" in said
    explicit = Two()
    with pytest.raises(ValueError, match=r"expected one language model.*logits_and_labels"):
        trainer(LScore()).fit(explicit, loader(16), loader(8))
    assert explicit.ended == 1


def test_warnings_that_are_errors_end_no_training(trainer, messages):
    """As under ``python -W error``, which these tests are."""
    lscore, model = EnvironmentLScore(), PlainLM()
    model.validation_step = lambda batch, batch_idx: {
        "logits": model(batch["input_ids"]).new_zeros(4, 12, 40),
        "labels": torch.randint(40, (4, 12)),
    }
    t = trainer(lscore)
    t.fit(model, loader(16), loader(4))
    assert t.global_step == 4


def test_one_that_the_script_has_works_and_ours_stays_out(trainer, tmp_path):
    """In either order, and CostEarlyStopping obeys the one that works."""
    for order in (1, -1):
        own, ours = LScore(), EnvironmentLScore()
        t = trainer(*[ours, CostEarlyStopping(), own][::order])
        t.fit(PlainLM(), loader(16), loader(4))
        assert own.last_record is not None
        assert (ours.last_record, ours.stays_out) == (None, True)
    assert len(read_records(tmp_path)) == 2


def test_of_two_in_one_list_of_callbacks_the_first_works(trainer, tmp_path):
    """Lightning puts those of two Trainers into the same list."""
    first, second = EnvironmentLScore(), EnvironmentLScore()
    for _ in range(2):
        t = trainer(first, second)
        t.fit(PlainLM(), loader(16), loader(4))
        assert (first.stays_out, second.stays_out) == (False, True)
    assert len(read_records(tmp_path)) == 2


def test_why_it_is_no_language_model_is_all_that_is_said_of_one_that_is_resumed(
    trainer, messages, tmp_path, recwarn
):
    model = UNRELATED["classifier that returns its logits"]()
    save = ModelCheckpoint(tmp_path, filename="end")
    data = model.data(), model.data()
    trainer(save, max_epochs=1).fit(model, *data)
    t = trainer(EnvironmentLScore(), save, max_epochs=2)
    t.fit(model, *data, ckpt_path=tmp_path / "end.ckpt")
    (message,) = messages()
    assert "expected logits [batch, time, vocabulary]" in message
    assert [str(w.message) for w in recwarn if "LScore" in str(w.message)] == []


def test_doubts_about_a_language_model_are_said_once_it_is_known_to_be_one(trainer, tmp_path):
    save, data = ModelCheckpoint(tmp_path, filename="end"), (loader(16), loader(4))
    trainer(save, max_epochs=1).fit(PlainLM(), *data)
    t = trainer(EnvironmentLScore(), save, max_epochs=2)
    with pytest.warns(UserWarning, match="was not part of the run before step 4"):
        t.fit(PlainLM(), *data, ckpt_path=tmp_path / "end.ckpt")


def test_another_training_of_the_same_callback_is_looked_at_anew(trainer, messages):
    lscore, model = EnvironmentLScore(), UNRELATED["regression"]()
    trainer(lscore).fit(model, model.data(), model.data())
    assert lscore.stays_out
    trainer(lscore).fit(PlainLM(), loader(16), loader(4))
    assert lscore.last_record.L > 0
    assert len(messages()) == 1


def test_it_pickles(trainer):
    """As for spawned processes."""
    lscore = pickle.loads(pickle.dumps(EnvironmentLScore()))
    trainer(lscore).fit(PlainLM(), loader(16), loader(4))
    assert pickle.loads(pickle.dumps(lscore)).last_record.L == lscore.last_record.L


def test_all_processes_give_up_together_whichever_of_them_failed():
    """At the next exchange, so that none waits; and all trainings reach their end."""
    script = Path(__file__).with_name("environment_ranks.py")
    assert "all ended" in run_python(str(script), folder=script.parent)


def test_every_hook_is_guarded():
    """Also those that LScore gets later."""
    hooks = [name for name in vars(LScore) if name.startswith("on_")]
    assert len(hooks) > 8
    assert {*hooks, "setup", "teardown", "state_dict"} <= vars(EnvironmentLScore).keys()
