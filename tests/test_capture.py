"""Logits and labels come out of every kind of module, aligned."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from conftest import VOCABULARY, HuggingFaceLM, PlainLM, loader, reference_perplexity, tiny_llama
from torch import nn

from lightning_lscore import LScore
from lightning_lscore.capture import Capture, alignment, transformers_language_models


class Stepping(HuggingFaceLM):
    """A transformers model whose validation_step is given."""

    def __init__(self, step: Callable) -> None:
        super().__init__()
        self.step = step

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return self.step(self.model, batch)


STEPS = {
    "returns nothing": lambda model, b: model(**b) and None,
    "returns the loss": lambda model, b: model(**b).loss,
    "returns the ModelOutput": lambda model, b: model(**b),
    "returns a dict of its own": lambda model, b: {"loss": model(**b).loss, "n": 3},
    "asks for a tuple": lambda model, b: model(**b, return_dict=False)[0],
    "gives positional input": lambda model, b: model(b["input_ids"], labels=b["labels"]).loss,
    "computes the loss itself": lambda model, b: model(b["input_ids"]).logits.mean(),
    "generates text as well": lambda model, b: (
        model(b["input_ids"]).logits.mean(),
        model.generate(b["input_ids"], max_new_tokens=3, do_sample=False),
    )[0],
    "generates text first": lambda model, b: (
        model.generate(b["input_ids"], max_new_tokens=3, do_sample=False),
        model(**b).loss,
    )[1],
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_transformers_model_is_found_whatever_the_step_does(step, trainer):
    model = Stepping(step)
    (result,) = trainer(LScore()).validate(model, loader(7, batch=3), verbose=False)
    expected = reference_perplexity(model.model, loader(7))
    assert result["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert result["lscore/validation_tokens"] == 7 * 11


WRAPPERS = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": lambda model: model.compile(backend="eager") or model,
    "in a container": lambda model: nn.Sequential(nn.ModuleDict({"lm": model})),
    "gradient checkpointing": lambda model: model.activation_checkpointing_enable() or model,
}


@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_hook_sees_through_wrappers(wrap, sanity, trainer):
    class Wrapped(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = wrap(tiny_llama())
            self.model = self.wrapped
            if isinstance(self.wrapped, nn.Sequential):
                self.model = self.wrapped[0]["lm"]

        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss

        def validation_step(self, batch, batch_idx):
            self.model(**batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    lscore, model = LScore(), Wrapped()
    trainer(lscore, num_sanity_val_steps=sanity, max_epochs=2).fit(model, loader(4), loader(7))
    m = lscore.last_record.measurements
    model.eval()
    assert m.validation_tokens == 7 * 11
    assert m.perplexity == pytest.approx(reference_perplexity(model.model, loader(7)), rel=1e-6)


def test_a_compiled_lightning_module_works(trainer):
    lscore, model = LScore(), HuggingFaceLM()
    compiled = torch.compile(model, backend="eager")
    trainer(lscore, max_epochs=2).fit(compiled, loader(4), loader(7))
    expected = reference_perplexity(model.model.eval(), loader(7))
    assert lscore.last_record.measurements.perplexity == pytest.approx(expected, rel=1e-6)


class Two(HuggingFaceLM):
    """A student and a teacher, both called with labels."""

    def __init__(self, teacher_learns: bool) -> None:
        super().__init__()
        self.teacher = tiny_llama().requires_grad_(teacher_learns)
        for parameter in self.teacher.parameters():
            parameter.data.mul_(2)

    def validation_step(self, batch, batch_idx):
        self.teacher(**batch)
        self.model(**batch)


def test_a_frozen_teacher_is_not_scored(trainer):
    model = Two(teacher_learns=False)
    (result,) = trainer(LScore()).validate(model, loader(7), verbose=False)
    expected = reference_perplexity(model.model, loader(7))
    assert result["perplexity"] == pytest.approx(expected, rel=1e-6)


def test_two_models_that_learn_are_not_mixed(trainer):
    with pytest.raises(ValueError, match="which one counts"):
        trainer(LScore()).validate(Two(teacher_learns=True), loader(7), verbose=False)


def test_several_forwards_of_a_step_are_all_counted(trainer):
    class Halves(HuggingFaceLM):
        def validation_step(self, batch, batch_idx):
            for part in (slice(0, 1), slice(1, None)):
                self.model(**{name: rows[part] for name, rows in batch.items()})

    model = Halves()
    (result,) = trainer(LScore()).validate(model, loader(8), verbose=False)
    expected = reference_perplexity(model.model, loader(8))
    assert result["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert result["lscore/validation_tokens"] == 8 * 11


def test_encoder_decoder_labels_are_not_shifted_again(trainer):
    from transformers import T5Config, T5ForConditionalGeneration

    class Seq2Seq(HuggingFaceLM):
        def __init__(self) -> None:
            super().__init__()
            self.model = T5ForConditionalGeneration(
                T5Config(
                    vocab_size=VOCABULARY,
                    d_model=16,
                    d_kv=8,
                    d_ff=32,
                    num_layers=1,
                    num_heads=2,
                    decoder_start_token_id=0,
                )
            )

    model = Seq2Seq()
    (result,) = trainer(LScore()).validate(model, loader(4), verbose=False)
    (batch,) = loader(4)
    model.eval()
    with torch.no_grad():
        loss = model.model(**batch).loss.double()
    assert result["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-6)
    assert result["lscore/validation_tokens"] == 4 * 12


# ---------------------------------------------------------------------- alignment


class Shifted(PlainLM):
    """Labels are the tokens after the inputs, as nanoGPT has them; hands over what it is told."""

    def __init__(self, keep: tuple[str, ...] = ("x", "y")) -> None:
        super().__init__()
        self.keep = keep

    def validation_step(self, batch, batch_idx):
        return {"logits": self(batch["x"]), "labels": batch["y"]}


def shifted_batches(n: int = 7) -> list[dict[str, torch.Tensor]]:
    rows = loader(n).dataset.rows
    return [{"x": rows[:, :-1], "y": rows[:, 1:]}]


def stream(batches: list) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(batches, batch_size=None)


def test_labels_that_are_shifted_already_are_recognised_by_the_input(trainer):
    model = Shifted()
    (result,) = trainer(LScore()).validate(model, stream(shifted_batches()), verbose=False)
    expected = reference_perplexity(model, loader(7))
    assert result["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert result["lscore/validation_tokens"] == 7 * 11


def test_a_transformers_model_given_only_x_is_scored_against_y(trainer):
    model = HuggingFaceLM()
    model.validation_step = lambda batch, batch_idx: model.model(batch[0]).logits.mean()
    pairs = stream([(b["x"], b["y"]) for b in shifted_batches()])
    (result,) = trainer(LScore()).validate(model, pairs, verbose=False)
    expected = reference_perplexity(model.model, loader(7))
    assert result["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert result["lscore/validation_tokens"] == 7 * 11


def test_what_cannot_be_recognised_is_said_and_may_be_declared(trainer):
    class Blind(Shifted):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {"x": batch["x"], "y": (batch["y"] + 5) % VOCABULARY}

    model = Blind()
    with pytest.warns(UserWarning, match="labels_are_shifted=True"):
        (guessed,) = trainer(LScore()).validate(model, stream(shifted_batches()), verbose=False)
    declared = LScore(labels_are_shifted=True)
    (said,) = trainer(declared).validate(model, stream(shifted_batches()), verbose=False)
    assert (guessed["lscore/validation_tokens"], said["lscore/validation_tokens"]) == (70, 77)


def test_logits_and_labels_cut_to_match_are_recognised(trainer):
    class Cut(PlainLM):
        def validation_step(self, batch, batch_idx):
            logits = self(batch["input_ids"])
            return {"logits": logits[:, :-1], "labels": batch["labels"][:, 1:]}

    model = Cut()
    (result,) = trainer(LScore()).validate(model, loader(7), verbose=False)
    assert result["perplexity"] == pytest.approx(reference_perplexity(model, loader(7)), rel=1e-6)


def test_one_prediction_a_sample_is_not_shifted(trainer):
    class Last(PlainLM):
        def validation_step(self, batch, batch_idx):
            logits = self(batch["input_ids"])[:, -2:-1]
            return {"logits": logits, "labels": batch["input_ids"][:, -1:]}

    (result,) = trainer(LScore()).validate(Last(), loader(7), verbose=False)
    assert result["lscore/validation_tokens"] == 7


def test_a_function_hands_over_what_nothing_else_finds(trainer):
    class Odd(PlainLM):
        def validation_step(self, batch, batch_idx):
            return [self(batch["input_ids"])]

    model = Odd()
    lscore = LScore(logits_and_labels=lambda module, outputs, batch: (outputs[0], batch["labels"]))
    (result,) = trainer(lscore).validate(model, loader(7), verbose=False)
    assert result["perplexity"] == pytest.approx(reference_perplexity(model, loader(7)), rel=1e-6)


def test_a_function_that_returns_something_else_is_told_so(trainer):
    lscore = LScore(logits_and_labels=lambda module, outputs, batch: outputs)
    with pytest.raises(ValueError, match=r"expected the function to return the tensors"):
        trainer(lscore).validate(PlainLM(), loader(4), verbose=False)


ROWS = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
IGNORED = torch.tensor([[-100, 6, 7, 8], [-100, -100, 3, 4]])


@pytest.mark.parametrize(
    ("labels", "tokens", "expected"),
    [
        (ROWS, ROWS, False),
        (IGNORED, ROWS, False),
        (ROWS[:, 1:], ROWS[:, :-1], True),
        (ROWS[:, 1:], ROWS, True),
        (ROWS[:, :-1], ROWS, False),
        (ROWS + 9, ROWS, None),
        (torch.full_like(ROWS, -100), ROWS, None),
        (torch.ones_like(ROWS), torch.ones_like(ROWS), None),
        (ROWS[:, 2:], ROWS, None),
        (ROWS[0], ROWS[0], None),
        (ROWS, ROWS[:1], None),
    ],
)
def test_alignment_is_read_off_the_data_or_left_open(labels, tokens, expected):
    assert alignment(labels, tokens) is expected


# ---------------------------------------------------------------------- hooks


def test_hooks_are_there_only_while_validating():
    model, capture = tiny_llama(), Capture()
    capture.attach(model)
    capture.attach(model)
    assert len(model._forward_hooks) == 1
    capture.detach()
    assert not model._forward_hooks


def test_no_tensor_is_kept_after_a_batch():
    model, capture = tiny_llama(), Capture()
    capture.attach(model)
    (batch,) = loader(4)
    seen = []
    capture.start_batch(batch, lambda logits, targets: seen.append(logits.shape))
    model(batch["input_ids"])
    capture.end_batch(model, None, batch)
    capture.detach()
    assert seen == [(4, 12, VOCABULARY)]
    assert not [v for v in vars(capture).values() if isinstance(v, (torch.Tensor, tuple, dict))]


def test_masked_language_models_are_not_taken_for_causal_ones():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    both = nn.ModuleList([BertForMaskedLM(config), tiny_llama()])
    assert transformers_language_models(both) == [both[1]]


def test_repeated_samples_of_a_sampler_are_not_counted():
    capture, seen = Capture(), []
    (batch,) = loader(4)
    logits = torch.zeros(4, 12, VOCABULARY)
    capture.start_batch(batch, lambda logits, targets: seen.append(targets), 3)
    capture.end_batch(None, {"logits": logits, "labels": batch["labels"]}, batch)
    assert (seen[0] != -100).sum(1).tolist() == [11, 0, 0, 0]
    assert (batch["labels"] >= 0).all()
