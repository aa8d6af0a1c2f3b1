"""Logits and labels come out of every kind of module, aligned."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import pickle
import shutil
from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from conftest import VOCABULARY, HuggingFaceLM, PlainLM, loader, reference_perplexity, tiny_llama
from torch import nn

from lightning_lscore import LScore
from lightning_lscore.heldout import hidden_nll
from lightning_lscore.heldout.capture import Capture
from lightning_lscore.heldout.nothing_found import NoLanguageModel
from lightning_lscore.heldout.perplexity import Perplexity


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


def bart_decoder():
    from transformers import BartConfig, BartForCausalLM

    sizes = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    return BartForCausalLM(
        BartConfig(vocab_size=VOCABULARY, d_model=16, is_encoder_decoder=False, **sizes)
    )


def xlnet():
    from transformers import XLNetConfig, XLNetLMHeadModel

    sizes = {"n_layer": 1, "n_head": 2, "d_inner": 16}
    return XLNetLMHeadModel(XLNetConfig(vocab_size=VOCABULARY, d_model=16, **sizes))


@pytest.mark.parametrize("make", [bart_decoder, xlnet, tiny_llama])
@pytest.mark.parametrize("declared", [None, False])
def test_labels_are_moved_as_the_models_own_loss_moves_them(make, declared, trainer):
    """That of some transformers models compares label t with logits t."""

    class Scored(pl.LightningModule):
        losses = ()

        def __init__(self):
            super().__init__()
            self.model = make()

        def validation_step(self, batch, batch_idx):
            labels = batch["labels"].clone()
            labels[0, :batch_idx] = -100
            if batch_idx == 0:
                labels[:] = -100  # tells nothing
            loss = self.model(batch["input_ids"], labels=labels).loss
            moved = labels[:, 1:] if make is tiny_llama else labels
            n = int((moved != -100).sum())
            self.losses += ((float(loss) * n if n else 0.0, n),)

    torch.manual_seed(0)
    lscore, model = LScore(labels_are_shifted=declared), Scored()
    # Compared in place, a copy of the input is what each token is predicted from.
    doubtful = make is not tiny_llama and declared is None
    says = pytest.warns(UserWarning, match="One of the two is a mistake.*labels_are_shifted=True")
    with says if doubtful else contextlib.nullcontext():
        (result,) = trainer(lscore).validate(model, loader(7, batch=3), verbose=False)
    total, n = (sum(column) for column in zip(*model.losses, strict=True))
    told = make is tiny_llama or declared is None
    assert (result["lscore/validation_tokens"] == n) == told
    assert (result["perplexity"] == pytest.approx(math.exp(total / n), rel=1e-5)) == told
    assert ("does not move" in lscore._capture.source) == (told and make is not tiny_llama)


class PassesOn(nn.Module):
    """Calls forward directly, which no hook notices."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model.forward(*args, **kwargs)


WRAPPERS = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": lambda model: model.compile(backend="eager") or model,
    "torch.compile with autograd": lambda model: torch.compile(model, backend="aot_eager"),
    "called without __call__": lambda model: PassesOn(model),
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


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_what_was_compiled_before_is_heard_in_every_validation_without_compiling_again(trainer):
    """Also by a second LScore, and after the graphs of training and evaluation were made."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("inductor")
    model = HuggingFaceLM()
    model.model.compile(backend=counter)
    expected = reference_perplexity(model.model.eval(), loader(8))
    made = []
    for _ in range(3):
        (result,) = trainer(LScore()).validate(model, loader(8), verbose=False)
        assert result["perplexity"] == pytest.approx(expected, rel=1e-5)
        made.append(counter.frame_count)
    assert made[1] == made[2]


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


@pytest.mark.parametrize("as_tuple", [False, True])
def test_the_auxiliary_loss_of_experts_is_neither_counted_nor_taken_for_logits(as_tuple, trainer):
    from transformers import MixtralConfig, MixtralForCausalLM

    class Experts(HuggingFaceLM):
        def __init__(self) -> None:
            super().__init__()
            self.model = MixtralForCausalLM(
                MixtralConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=16,
                    intermediate_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                    num_local_experts=4,
                )
            )

        def validation_step(self, batch, batch_idx):
            self.model(**batch, output_router_logits=True, return_dict=not as_tuple)

    model, lscore = Experts(), LScore()
    (result,) = trainer(lscore).validate(model, loader(7), verbose=False)
    expected = reference_perplexity(model.model, loader(7))
    assert result["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert "hidden states" not in lscore._capture.source


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


@pytest.mark.parametrize("ignore_index", [-100, 0])
def test_a_batch_without_a_label_that_counts_is_no_guess(ignore_index):
    """As a rank may have that got nothing but prompts; what was guessed before stays guessed."""
    tokens = torch.tensor([[5, 6, 7, 8]])
    nothing = torch.full_like(tokens, ignore_index)
    capture, said = Capture(ignore_index=ignore_index), []
    for labels in (nothing[:0], nothing, tokens + 9, nothing, tokens, nothing):
        batch = {"input_ids": tokens[: len(labels)]}
        capture.start_batch(batch, Heard())
        logits = torch.zeros(*labels.shape, VOCABULARY)
        capture.end_batch(None, {"logits": logits, "labels": labels}, batch)
        said.append((capture.guessed, capture.source.split("; ")[1]))
    none, guess = "this rank saw no label that counts", "labels taken as not shifted"
    found = "labels found to be not shifted"
    assert said == [(False, none)] * 2 + [(True, guess)] * 2 + [(False, found)] * 2


def test_a_rank_whose_labels_are_all_ignored_does_not_warn(trainer):
    class Prompts(PlainLM):
        def validation_step(self, batch, batch_idx):
            labels = batch["labels"] if batch_idx else torch.full_like(batch["labels"], -100)
            return {"logits": self(batch["input_ids"]), "labels": labels}

    lscore = LScore()
    with pytest.raises(ValueError, match="counted no token"):
        trainer(lscore).validate(Prompts(), loader(4), verbose=False)  # as rank 0 has it alone
    (result,) = trainer(lscore).validate(Prompts(), loader(8), verbose=False)
    assert result["lscore/validation_tokens"] == 4 * 11


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


# ---------------------------------------------------------------------- hooks


def test_models_are_changed_only_while_validating():
    model, captures = tiny_llama(), [Capture(), Capture()]
    before = [dict(vars(m)) for m in model.modules()]
    for capture in (*captures, captures[0]):  # which leaves and comes again
        capture.attach(model)
    (batch,), heard = loader(4), [Heard(), Heard()]
    for capture, mine in zip(captures, heard, strict=True):
        capture.start_batch(batch, mine)
    model(**batch)
    assert [mine.ways for mine in heard] == [["update"], ["update"]]
    for capture in captures:
        capture.detach()
    assert [dict(vars(m)) for m in model.modules()] == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_nobody_listens_to_a_copy_that_is_made_while_validating(copied):
    model, capture, (batch,) = HuggingFaceLM(), Capture(), loader(4)
    capture.attach(model)
    capture.start_batch(batch, perplexity := Perplexity())
    with torch.no_grad():
        copied(model).model(**batch)
    assert perplexity.count == 0
    with torch.no_grad():
        capture.end_batch(model, model.validation_step(batch, 0), batch)
    capture.detach()
    assert perplexity.count == 4 * 11


def test_another_library_that_replaced_forward_gets_its_own_back():
    model, capture = tiny_llama(), Capture()
    forward, heard = model.forward, Heard()
    model.forward = own = lambda *args, **kwargs: (
        heard.ways.append("own"),
        forward(*args, **kwargs),
    )[1]
    capture.attach(model)
    (batch,) = loader(4)
    capture.start_batch(batch, heard)
    model(**batch)
    capture.detach()
    assert (heard.ways, model.forward) == (["own", "update"], own)


def test_no_tensor_is_kept_after_a_batch():
    model, capture = tiny_llama(), Capture()
    capture.attach(model)
    (batch,) = loader(4)
    heard = Heard()
    capture.start_batch(batch, heard)
    model(batch["input_ids"])
    capture.end_batch(model, None, batch)
    capture.detach()
    assert [logits.shape for logits in heard.values] == [(4, 12, VOCABULARY)]
    assert capture._step is None
    assert not [v for v in vars(capture).values() if isinstance(v, (torch.Tensor, tuple, dict))]


def test_repeated_samples_of_a_sampler_are_not_counted():
    capture, heard = Capture(), Heard()
    (batch,) = loader(4)
    logits = torch.zeros(4, 12, VOCABULARY)
    capture.start_batch(batch, heard, repeated=3)
    capture.end_batch(None, {"logits": logits, "labels": batch["labels"]}, batch)
    assert (heard.labels[0] != -100).sum(1).tolist() == [11, 0, 0, 0]
    assert (batch["labels"] >= 0).all()


# ---------------------------------------------------------------------- what is not to be scored


class Heard:
    """Stands in for a HeldOut, and keeps what it is handed and which way."""

    def __init__(self):
        self.ways, self.values, self.labels = [], [], []

    def update(self, logits, labels):
        self._keep("update", logits, labels)

    def update_nll(self, nll, labels):
        self._keep("update_nll", nll, labels)

    def _keep(self, way, values, labels):
        self.ways.append(way)
        self.values.append(values)
        self.labels.append(labels)


@pytest.mark.parametrize(
    ("outputs", "way"),
    [({"logits": torch.zeros(4, 12, VOCABULARY)}, "update"), (torch.tensor(1.5), "update_nll")],
    ids=["logits", "a mean loss"],
)
def test_logits_and_nll_are_handed_on_by_ways_of_their_own(outputs, way):
    capture, heard, (batch,) = Capture(from_loss=True), Heard(), loader(4)
    capture.start_batch(batch, heard)
    capture.end_batch(None, outputs, batch)
    assert heard.ways == [way]


def test_logits_of_stacked_sequences_are_refused():
    """It is not known which of their dimensions is time, so whether they align cannot be read."""
    capture, (batch,) = Capture(), loader(4)
    stacked = {"logits": torch.zeros(1, 4, 12, VOCABULARY), "labels": batch["labels"][None]}
    capture.start_batch(batch, Heard())
    with pytest.raises(ValueError, match=r"expected one label .* got logits \[1, 4, 12, 32\]"):
        capture.end_batch(None, stacked, batch)


def captured(outputs=None, batch=None, model=None, step=None, **options) -> Perplexity:
    """The sums of one batch; a step is called with the model and the batch."""
    capture, perplexity = Capture(**options), Perplexity()
    if model is not None:
        capture.attach(model)
    capture.start_batch(batch, perplexity)
    try:
        with torch.no_grad():
            outputs = step(model, batch) if step else outputs
        capture.end_batch(model, outputs, batch)
    finally:
        capture.detach()
    perplexity.source = capture.source
    return perplexity


def by_hand(logits: torch.Tensor, pairs: list[tuple[int, int, int]]) -> tuple[float, int]:
    """Sum of NLL in float64, and the number, of tokens given as (row, position, token)."""
    log_p = torch.log_softmax(logits.double(), -1)
    return -sum(float(log_p[b, t, token]) for b, t, token in pairs), len(pairs)


def sums(perplexity: Perplexity) -> tuple[float, int]:
    return pytest.approx(float(perplexity.nll_sum), rel=1e-6), int(perplexity.count)


def test_a_step_that_only_generates_is_not_scored():
    model = tiny_llama().eval()
    (batch,) = loader(4)
    with pytest.raises(ValueError, match="the transformers model inside it gave no logits"):
        captured(None, batch, model, lambda m, b: m.generate(b["input_ids"], max_new_tokens=3))


def test_parts_of_a_batch_without_labels_are_not_taken_for_the_whole():
    model = tiny_llama().eval()
    (batch,) = loader(4)

    def halves(model, batch):
        for part in batch["input_ids"].chunk(2):
            model(part)

    with pytest.raises(ValueError, match=r"got 2 calls with parts.*logits_and_labels"):
        captured(None, batch, model, halves)


@pytest.mark.parametrize("together", [False, True])
def test_a_model_that_is_called_with_several_texts_and_no_label_is_doubted(together):
    """As where answers are preferred or rejected by their log-probabilities."""
    model, capture = tiny_llama().eval(), Capture()
    (chosen,), (rejected,) = loader(4), loader(4, seed=1)
    batch = {"chosen_input_ids": chosen["input_ids"], "rejected_input_ids": rejected["input_ids"]}
    capture.attach(model)
    capture.start_batch(batch, Perplexity(-100))
    for ids in [torch.cat([*batch.values()])] if together else batch.values():
        model(ids)
    capture.end_batch(model, torch.tensor(0.5), batch)
    capture.detach()
    (doubt,) = capture.doubts
    assert "with several texts" in doubt


def test_a_batch_that_is_read_twice_counts_once():
    model = tiny_llama().eval()
    (batch,) = loader(4)
    found = captured(None, batch, model, lambda m, b: m(b["input_ids"]) and m(b["input_ids"]).loss)
    assert found.count == 4 * 11


def test_label_smoothing_is_no_part_of_the_perplexity(trainer):
    class Smooth(HuggingFaceLM):
        def validation_step(self, batch, batch_idx):
            logits = self.model(**batch).logits[:, :-1].reshape(-1, VOCABULARY)
            labels = batch["labels"][:, 1:].reshape(-1)
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.3)
            self.log("loss", loss)
            return {"loss": loss}

    model = Smooth()
    model.model.lm_head.weight.data.mul_(30)  # where all words are as likely, nothing is smoothed
    (result,) = trainer(LScore()).validate(model, loader(4), verbose=False)
    expected = reference_perplexity(model.model, loader(4))
    assert result["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert result["loss"] != pytest.approx(torch.tensor(expected).log().item(), rel=1e-3)


LEFT = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
MASKS = {
    "right": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
    "left": LEFT,
    "of packed documents": [[1, 1, 2, 2, 0], [3, 3, 3, 3, 3], [4, 5, 0, 0, 0]],
}


def masked(mask: list[list[int]]) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, int]]]:
    """A batch, and what counts in it: tokens after a token, neither of which is padding."""
    rows = loader(3).dataset.rows[:, :5]
    pairs = [
        (b, t, int(rows[b, t + 1]))
        for b, row in enumerate(mask)
        for t in range(4)
        if row[t] and row[t + 1]
    ]
    mask = torch.tensor(mask)
    return {"input_ids": rows, "labels": rows.clone(), "attention_mask": mask}, pairs


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_padding_is_not_scored_whether_or_not_labels_say_so(mask, labels, in_batch):
    """The first token behind padding on the left has nothing that it could be told from."""
    model = tiny_llama().eval()
    batch, pairs = masked(mask)
    if not labels:
        del batch["labels"]
    inputs = dict(batch)
    if not in_batch:
        del batch["attention_mask"]
    found = captured(None, batch, model, lambda model, _: model(**inputs) and None)
    with torch.no_grad():
        assert sums(found) == by_hand(model(**inputs).logits, pairs)


def test_a_mask_of_four_dimensions_leaves_it_to_the_one_in_the_batch():
    model = tiny_llama().eval()
    batch, pairs = masked(MASKS["right"])
    causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None].expand(3, 1, 5, 5)
    step = {"input_ids": batch["input_ids"], "attention_mask": causal, "labels": batch["labels"]}
    found = captured(None, batch, model, lambda model, _: model(**step) and None)
    with torch.no_grad():
        assert sums(found) == by_hand(model(**step).logits, pairs)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("cut", ["before the batch", "in the step"])
def test_padding_is_not_scored_in_shifted_labels(mask, cut):
    logits = torch.randn(3, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    batch, pairs = masked(mask)
    rows = batch["input_ids"]
    outputs = {"logits": logits, "labels": rows[:, 1:]}
    if cut == "before the batch":  # the last token has no mask: it counts if the one before does
        batch = {"input_ids": rows[:, :-1], "attention_mask": batch["attention_mask"][:, :-1]}
        pairs = [pair for pair in pairs if pair[1] < 3]
        pairs += [(b, 3, int(rows[b, 4])) for b in range(3) if mask[b][3]]
    assert sums(captured(outputs, batch)) == by_hand(logits, pairs)


def test_first_tokens_of_packed_documents_count_unless_their_labels_say_no():
    """Position ids that begin anew change what the model sees, and not what is counted."""
    model = tiny_llama().eval()
    rows = loader(2).dataset.rows[:, :6]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(2, -1)
    labels = rows.clone()
    labels[0, 3] = -100
    batch = {"input_ids": rows, "position_ids": positions, "labels": labels}
    found = captured(None, batch, model, lambda model, batch: model(**batch) and None)
    pairs = [(b, t, int(rows[b, t + 1])) for b in range(2) for t in range(5) if (b, t) != (0, 2)]
    with torch.no_grad():
        logits = model(input_ids=rows, position_ids=positions).logits
    assert sums(found) == by_hand(logits, pairs)
    assert found.count == 9


# ---------------------------------------------------------------------- kinds of output


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor


def model_output(logits, **others):
    from transformers.modeling_outputs import CausalLMOutput

    return CausalLMOutput(logits=logits, **others)


OUTPUTS = {
    "a dict": lambda logits, labels: {"loss": logits.mean(), "logits": logits},
    "a dict with labels": lambda logits, labels: {"logits": logits, "labels": labels},
    "a ModelOutput": lambda logits, labels: model_output(logits, loss=logits.mean()),
    "a dataclass": lambda logits, labels: Output(logits, logits.mean()),
    "logits and labels": lambda logits, labels: (logits, labels),
    "logits and loss": lambda logits, labels: (logits, logits.mean()),
    "loss and logits": lambda logits, labels: [logits.mean(), logits],
}
BATCHES = {
    "x and y": lambda rows: (rows[:, :-1], rows[:, 1:]),
    "named x and y": lambda rows: {"x": rows[:, :-1], "y": rows[:, 1:]},
    "labels that are the input": lambda rows: {"input_ids": rows, "labels": rows.clone()},
    "labels that are shifted": lambda rows: {"input_ids": rows[:, :-1], "labels": rows[:, 1:]},
    "tokens alone": lambda rows: rows,
}
CUT = {
    "tokens that the step cuts": lambda rows: {"x": rows},
    "labels that the step cuts": lambda rows: {"input_ids": rows, "labels": rows.clone()},
}


@pytest.mark.parametrize("make", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("name", [*BATCHES, *CUT])
def test_outputs_and_batches_of_all_kinds_are_aligned(make, name):
    rows = loader(3).dataset.rows
    batch = {**BATCHES, **CUT}[name](rows)
    if name in CUT:
        labels = rows[:, 1:]
    elif isinstance(batch, dict):
        labels = batch.get("labels", batch.get("y"))
    else:
        labels = batch[1] if isinstance(batch, tuple) else batch
    logits = torch.randn(*labels.shape, VOCABULARY, generator=torch.Generator().manual_seed(0))
    found = captured(make(logits, labels), batch)
    pairs = [(b, t, int(rows[b, t + 1])) for b in range(3) for t in range(rows.shape[1] - 1)]
    assert sums(found) == by_hand(logits, pairs)


def test_pairs_that_are_something_else_are_not_taken_for_logits():
    (batch,) = loader(4)
    states = torch.zeros(4, 12, 16)
    for outputs in ((states, states), (states,), states, (states, batch["labels"], 3)):
        with pytest.raises(NoLanguageModel, match="found no logits and labels"):
            captured(outputs, batch)


def test_logits_of_something_else_do_not_hide_those_of_the_language_model():
    model = tiny_llama().eval()
    (batch,) = loader(4)
    del batch["labels"]
    classes = lambda model, batch: {"logits": model(**batch).logits[:, 0, :5]}  # noqa: E731
    assert captured(None, batch, model, classes).count == 4 * 11


def test_labels_follow_the_logits_to_their_device():
    """Of a model that is spread over devices, the logits lie on the last one."""
    heard = Heard()
    capture, rows = Capture(), loader(2).dataset.rows
    capture.start_batch({"input_ids": rows}, heard)
    logits = torch.zeros(2, 12, VOCABULARY, device="meta")
    capture.end_batch(None, {"logits": logits, "labels": rows}, {"input_ids": rows})
    assert [x.device.type for x in (*heard.values, *heard.labels)] == ["meta", "meta"]


# ---------------------------------------------------------------------- encoder and decoder


def tiny_t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
    ).eval()


@pytest.mark.parametrize("length", [7, 12])
@pytest.mark.parametrize("labels", ["given to the model", "in the batch", "unlike the input"])
def test_of_an_encoder_decoder_model_all_labels_count(labels, length):
    """The encoder's mask is not taken for that of the labels, even where it is of their shape."""
    model = tiny_t5()
    rows = loader(3).dataset.rows
    mask = torch.ones_like(rows)
    mask[0, 2:] = 0
    targets = rows[:, :length].flip(1).clone()
    targets[2, 3:] = -100
    batch = {"input_ids": rows, "attention_mask": mask, "labels": targets}

    def step(model, batch):
        if labels == "given to the model":
            return model(**batch).loss
        return model(input_ids=rows, attention_mask=mask, decoder_input_ids=start).logits.mean()

    start = model.prepare_decoder_input_ids_from_labels(targets)
    if labels == "unlike the input":  # as where the decoder reads what it said itself
        start = (start + 1) % VOCABULARY
    with torch.no_grad():
        logits = model(input_ids=rows, attention_mask=mask, decoder_input_ids=start).logits
    pairs = [(b, t, int(x)) for b in range(3) for t, x in enumerate(targets[b]) if x >= 0]
    assert sums(captured(None, batch, model, step)) == by_hand(logits, pairs)


@pytest.mark.parametrize("steps", [2, 3])
def test_what_an_encoder_decoder_model_generates_is_not_scored(steps):
    batch = {"input_ids": loader(3).dataset.rows}
    with pytest.raises(ValueError, match=r"parts of the batch|found no logits and labels"):
        captured(
            None,
            batch,
            tiny_t5(),
            lambda model, batch: model.generate(**batch, max_new_tokens=steps, use_cache=False),
        )


def test_labels_that_transformers_was_told_are_shifted_are_not_shifted_again():
    model = tiny_llama().eval()
    rows = loader(3).dataset.rows
    x = rows[:, :-1]
    batch = {"input_ids": x, "labels": x, "shift_labels": rows[:, 1:].clone()}
    found = captured(None, batch, model, lambda model, batch: model(**batch) and None)
    with torch.no_grad():
        logits = model(x).logits
    pairs = [(b, t, int(rows[b, t + 1])) for b in range(3) for t in range(rows.shape[1] - 1)]
    assert sums(found) == by_hand(logits, pairs)


def test_labels_that_the_user_says_are_shifted_are_not_shifted_again():
    """Such as of BartForCausalLM, whose own loss does not shift them either."""
    model = tiny_llama().eval()
    rows = loader(3).dataset.rows
    batch = {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}
    step = lambda model, batch: model(**batch) and None  # noqa: E731
    found = captured(None, batch, model, step, labels_are_shifted=True)
    assert found.count == 3 * 11


# ---------------------------------------------------------------------- no logits


def unheard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean loss as kernels of their own compute it, without torch's cross_entropy."""
    counted = labels != -100
    picked = logits.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    return (logits.logsumexp(-1) - picked)[counted].mean()


def fused(model: nn.Module, factor: float = 1.0) -> nn.Module:
    """Makes a model compute its loss from hidden states and the output layer's weight alone."""
    from transformers.modeling_outputs import CausalLMOutput

    class Fused(type(model)):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
            hidden = self.model(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state
            logits = nn.functional.linear(hidden[:, :-1], self.lm_head.weight).flatten(0, 1)
            return CausalLMOutput(loss=unheard_loss(logits, labels[:, 1:].flatten()) * factor)

    model.__class__ = Fused
    return model


@pytest.mark.parametrize("buffer", [1, 5 * 4 * VOCABULARY, 1 << 20])
def test_models_without_logits_are_measured_by_their_hidden_states(monkeypatch, buffer):
    """A few rows at a time, as many as the buffer holds."""
    monkeypatch.setattr(hidden_nll, "_BUFFER", buffer)
    sizes, measure = [], hidden_nll.row_nll
    monkeypatch.setattr(
        hidden_nll, "row_nll", lambda x, *rest: (sizes.append(len(x)), measure(x, *rest))[1]
    )
    model, (batch,) = tiny_llama().eval(), loader(4)
    batch["labels"] = batch["labels"].clone()
    batch["labels"][0, :5] = -100
    batch["attention_mask"] = torch.ones_like(batch["labels"])
    batch["attention_mask"][1, 8:] = 0
    batch["labels"][1, 8:] = -100
    step = lambda model, batch: model(**batch).loss  # noqa: E731
    expected = captured(None, batch, model, step)
    found = captured(None, batch, fused(model), step)
    assert sums(found) == (pytest.approx(float(expected.nll_sum)), int(expected.count))
    assert "hidden states" in found.source
    assert max(sizes) == max(1, min(48, buffer // (4 * VOCABULARY)))


def scaled(model: nn.Module) -> nn.Module:
    model.config.final_logit_softcapping = 30.0
    return fused(model)


REFUSED = {
    "softcapping": (scaled, "final_logit_softcapping=30.0"),
    "a loss with something else in it": (lambda m: fused(m, factor=1.2), "its own is"),
    "an output layer of its own kind": (
        lambda m: setattr(fused(m), "lm_head", PassesOn(m.lm_head)) or m,
        "a PassesOn",
    ),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_hidden_states_that_do_not_make_the_logits_are_refused(make, says):
    model = make(tiny_llama().eval())
    if says == "a PassesOn":
        type(model.lm_head).weight = property(lambda self: self.model.weight)
    (batch,) = loader(4)
    with pytest.raises(ValueError, match=f"(?s)Fused returned no.*{says}.*and_labels="):
        captured(None, batch, model, lambda model, batch: model(**batch).loss)


# ---------------------------------------------------------------------- only a loss


LOSSES = {
    "a tensor": lambda loss: loss,
    "a dict": lambda loss: {"loss": loss, "n": 3},
    "of one element": lambda loss: loss[None],
}


@pytest.mark.parametrize("wrap", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_a_mean_loss_counts_as_many_tokens_as_it_is_of(wrap, batch):
    batch = batch(loader(3).dataset.rows)
    found = captured(wrap(torch.tensor(1.5)), batch, from_loss=True)
    assert sums(found) == (1.5 * 33, 33)
    assert "mean loss of validation_step x counted labels; wrong if" in found.source


def test_a_loss_of_parts_is_weighted_by_their_labels():
    """-100 and padding do not count, and NaN of a batch without labels harms nothing."""
    perplexity, capture = Perplexity(), Capture(from_loss=True)
    for loss, counted in ((1.0, 3), (2.0, 1), (float("nan"), 0)):
        labels = torch.full((1, 12), -100)
        labels[0, 1 : counted + 1] = 7
        batch = {"input_ids": labels.clamp(min=0), "labels": labels}
        capture.start_batch(batch, perplexity)
        capture.end_batch(None, torch.tensor(loss), batch)
    assert (float(perplexity.nll_sum), int(perplexity.count)) == (5.0, 4)


def test_a_loss_may_be_of_labels_of_another_length_than_the_input():
    rows = loader(3).dataset.rows
    batch = {"input_ids": rows, "labels": rows[:, :5]}
    found = captured(torch.tensor(1.5), batch, from_loss=True, labels_are_shifted=True)
    assert sums(found) == (1.5 * 15, 15)
    found = captured(torch.tensor(1.5), {"x": rows, "labels": rows[:, 0]}, from_loss=True)
    assert sums(found) == (1.5 * 3, 3)


def test_logits_count_before_a_loss():
    (batch,) = loader(4)
    outputs = {"loss": torch.tensor(9.0), "logits": torch.zeros(4, 12, VOCABULARY)}
    found = captured(outputs, batch, from_loss=True)
    assert float(found.compute()) == pytest.approx(VOCABULARY)


def test_a_loss_is_taken_only_if_asked_for(trainer):
    class Mean(PlainLM):
        def validation_step(self, batch, batch_idx):
            logits = self(batch["input_ids"])[:, :-1].flatten(0, 1)
            return unheard_loss(logits, batch["labels"][:, 1:].flatten())

    with pytest.raises(ValueError, match=r"(?s)a tensor \[\].*from_loss=True"):
        trainer(LScore()).validate(Mean(), loader(7), verbose=False)
    lscore, model = LScore(), Mean()
    lscore._capture = Capture(from_loss=True)
    (result,) = trainer(lscore).validate(model, loader(7), verbose=False)
    assert result["perplexity"] == pytest.approx(reference_perplexity(model, loader(7)), rel=1e-6)
    assert result["lscore/validation_tokens"] == 77
