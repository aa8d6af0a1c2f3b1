"""Models of other libraries: PEFT around transformers, litGPT, x-transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from zoo_forms import LENGTH, MASK, PAD, WORDS, OwnGPT, dictionaries, ids, one_more, whole
from zoo_judge import UNCOUNTED, NotBuilt, Row, Rows, Specimen

ANY = ("exact", "exact, doubted", "refused", "doubtful")


def gpt2(heads: str = "GPT2LMHeadModel", layers: int = 2) -> Any:
    transformers = _library("transformers")
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
        num_labels=1,
    )
    return getattr(transformers, heads)(config).eval()


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise NotBuilt(f"{name} is not installed ({error})") from error


class Peft(Specimen):
    """A PEFT model that is called with labels; ``rows`` come before the words."""

    plain = False
    rows = 0

    def __init__(self, config: str, layers: int = 2, **options: Any) -> None:
        super().__init__()
        peft = _library("peft")
        made = getattr(peft, config)(task_type="CAUSAL_LM", **options)
        self.model = peft.get_peft_model(gpt2(layers=layers), made)
        for p in self.model.parameters():  # adapters begin at zero, where they change nothing
            if p.requires_grad:
                p.data.normal_(std=0.1)
        kind = config.removesuffix("Config")
        self.rows = options.get("num_virtual_tokens", 0) if "Prefix" not in kind else 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def truth(self, batch: Any) -> Iterable[Rows]:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        logits = self.model(**inputs).logits[:, self.rows :]
        yield logits[:, :-1], batch["labels"][:, 1:]


class PeftOwnLoss(Peft):
    """Called without labels; the loss is cut out of the logits by hand."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        logits, y = self.model(**inputs).logits, batch["labels"]
        return F.cross_entropy(logits[:, -y.shape[1] : -1].flatten(0, 1), y[:, 1:].flatten())


class DoubleHeads(Specimen):
    """GPT-2 with a head that chooses among answers."""

    plain = False

    def __init__(self) -> None:
        super().__init__()
        self.model = gpt2("GPT2DoubleHeadsModel")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.model(**batch)
        return out.loss + out.mc_loss

    def truth(self, batch: Any) -> Iterable[Rows]:
        logits = self.model(input_ids=batch["input_ids"]).logits
        yield logits[:, :, :-1], batch["labels"][:, :, 1:]


def _choices() -> list[dict[str, Tensor]]:
    text = ids(0, 6).view(3, 2, LENGTH)
    last = torch.full((3, 2), LENGTH - 1)
    return [{"input_ids": text, "labels": text, "mc_token_ids": last, "mc_labels": last[:, 0] % 2}]


class Masked(Specimen):
    """A masked language model of transformers: no perplexity."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        transformers = _library("transformers")
        config = transformers.BertConfig(
            vocab_size=WORDS,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=48,
        )
        self.model = getattr(transformers, kind)(config)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def truth(self, batch: Any) -> None:
        return None


def _masked(*names: str) -> list[dict[str, Tensor]]:
    hidden = torch.arange(LENGTH) % 4 == 1
    found: list[dict[str, Tensor]] = []
    for t in whole():
        found.append({"input_ids": t.masked_fill(hidden, MASK)})
        found[-1]["labels"] = t.masked_fill(~hidden, UNCOUNTED)
        if names:
            found[-1]["next_sentence_label"] = torch.arange(len(t)) % 2
    return found


def _classes() -> list[dict[str, Tensor]]:
    return [{"input_ids": t, "labels": t[:, 0] % 2} for t in whole()]


class LitGPT(OwnGPT):
    """litGPT's GPT with its chunked loss."""

    def __init__(self) -> None:
        super().__init__()
        litgpt = _library("litgpt")
        self.lm = litgpt.GPT(
            litgpt.Config(
                block_size=32,
                n_layer=2,
                n_head=4,
                n_embd=32,
                vocab_size=WORDS,
                padded_vocab_size=WORDS,
            )
        )
        self.lm.lm_head.weight.data.mul_(8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        from litgpt.utils import chunked_cross_entropy

        inputs, y = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        return chunked_cross_entropy(self.lm(inputs), y, chunk_size=self.chunk)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx), prog_bar=True)

    chunk = 7


class LitGPTHeadChunks(LitGPT):
    """The same with the head in chunks, as its fine-tuning does."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        from litgpt.utils import chunked_cross_entropy

        logits = self.lm(batch, lm_head_chunk_size=4)
        logits[-1] = logits[-1][..., :-1, :]
        return chunked_cross_entropy(logits, batch[:, 1:], chunk_size=self.chunk)


class XTransformers(OwnGPT):
    """x-transformers' decoder, logits to a loss of one's own."""

    def __init__(self) -> None:
        super().__init__()
        x = _library("x_transformers")
        layers = x.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, rotary_pos_emb=True)
        self.lm = x.TransformerWrapper(num_tokens=WORDS, max_seq_len=32, attn_layers=layers)
        self.lm.to_logits.weight.data.mul_(4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.lm(batch[:, :-1]).transpose(1, 2), batch[:, 1:])


class XTransformersWrapped(XTransformers):
    """Its AutoregressiveWrapper, whose loss is written by hand."""

    def __init__(self) -> None:
        super().__init__()
        x = _library("x_transformers")
        self.wrapped = x.AutoregressiveWrapper(self.lm, pad_value=PAD)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.wrapped(batch)


def all_rows() -> Iterator[Row]:
    """Every row of another library."""
    exact = ("exact",)
    soft = {"num_virtual_tokens": 3}
    adapters: dict[str, dict[str, Any]] = {
        "LoraConfig": {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True},
        "IA3Config": {"target_modules": ["c_attn"], "feedforward_modules": []},
        "PromptTuningConfig": soft,
        "PrefixTuningConfig": soft,
        "PromptEncoderConfig": {**soft, "encoder_hidden_size": 16},
    }
    one = dictionaries()

    def row(
        group: str, kind: Callable[[], Specimen], layout: str, batches: Any, **more: Any
    ) -> Row:
        name = getattr(kind, "func", kind).__name__
        return Row(group, more.pop("name", name), layout, lambda: (kind(), batches()), **more)

    for config, options in adapters.items():
        for kind, layout in ((Peft, "labels to the model"), (PeftOwnLoss, "own loss")):
            made = partial(kind, config, **options)
            yield row(
                "PEFT",
                made,
                layout,
                lambda: one,
                name=f"GPT-2, {config.removesuffix('Config')}",
                due=exact,
                fits=kind is Peft,
            )
    group = "other classes of transformers"
    yield row(group, DoubleHeads, "labels [B, choices, T] to the model", _choices, due=ANY)
    none = ("none", "refused", "doubtful")
    made = partial(Masked, "BertForMaskedLM")
    yield row(group, made, "labels to the model", _masked, due=none, name="BertForMaskedLM")
    made = partial(Masked, "BertForPreTraining")
    pre = partial(_masked, "next_sentence_label")
    yield row(group, made, "labels to the model", pre, due=none, name="BertForPreTraining")
    kind = "BertForSequenceClassification"
    made = partial(Masked, kind)
    yield row(group, made, "labels to the model", _classes, due=none, name=kind)
    group = "other libraries"
    yield row(group, LitGPT, "chunked loss", one_more, due=exact, fits=True)
    yield row(group, LitGPTHeadChunks, "head in chunks", one_more, due=exact)
    yield row(group, XTransformers, "own loss", one_more, due=exact, fits=True)
    yield row(group, XTransformersWrapped, "its own loss", one_more, due=("exact", "refused"))
    yield row(
        group,
        XTransformersWrapped,
        "its own loss, from_loss=True",
        lambda: [ids(0, length=LENGTH + 1)],
        due=("exact", "doubtful"),
        options={"from_loss": True},
    )
