"""What a fit of the zoo's modules spends: training tokens, and FLOP beside PyTorch's own counter.

Tokens are those that the model reads, without padding; of an encoder-decoder, the source's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import zoo_libraries
import zoo_own
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from zoo_architectures import LSTM
from zoo_forms import PAD
from zoo_judge import Finding, NotBuilt, Row, Specimen, loader_of, quiet

from lightning_lscore import LScore

Read = Callable[[Any], int]
"""Training tokens in a batch."""


def _all_but_last(batch: Tensor) -> int:
    return batch[:, :-1].numel()


def _words(batch: Tensor) -> int:
    return int((batch[:, :-1] != PAD).sum())


def _mask(batch: dict[str, Tensor]) -> int:
    return int(batch["attention_mask"].sum())


def _of(key: Any, read: Read = Tensor.numel) -> Read:
    return lambda batch: read(batch[key])


# By the name of the class.
READS: dict[str, Read] = {
    "NanoGPT": _all_but_last,
    "Transposed": _all_but_last,
    "Permuted": _of(0),
    "Chunked": _all_but_last,
    "PadIgnored": _words,
    "PadLeft": _words,
    "LossMask": _of("tokens", _words),
    "NamedLossMask": _of(0, _words),
    "Picked": _words,
    "BoundEarly": _all_but_last,
    "Rolled": Tensor.numel,
    "Halves": _all_but_last,
    "Bytes": _all_but_last,
    "Tuples": lambda batch: int(batch[1].sum()),
    "Dictionaries": _mask,
    "Shifted": _mask,
    "Slotted": lambda batch: batch.source.numel(),
    "Nested": lambda batch: _all_but_last(batch["data"]["text"][0]),
    "LSTM": _all_but_last,
    "TimeMajor": _all_but_last,
    "TimeFirstBatches": lambda batch: batch[:-1].numel(),
    "TranslationPairs": _of(0),
    "Captions": _of(1, _all_but_last),
    "SoftPrompt": Tensor.numel,
    "WithTopic": _of("text", _all_but_last),
    "WithTags": _of("text", _all_but_last),
    "SequenceClassifier": _of(0),
    "SequenceClassifierDict": _mask,
    "Tagger": _of(0),
    "MaskedWords": Tensor.numel,
    "Matched": _of(1),
}


def _fit(module: Specimen, batches: Sequence[Any]) -> tuple[LScore, list[str]]:
    score = LScore()
    trainer = pl.Trainer(callbacks=[score], **quiet({"limit_val_batches": 0}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader_of(batches))
    said = [str(w.message) for w in caught if str(w.message).startswith("LScore")]
    return score, said


def _compared(row: Row, expected: float, got: float | None, within: float, said: str) -> Finding:
    got = math.nan if got is None else got
    exact = abs(got - expected) <= within * expected
    verdict = "exact" if exact else "doubtful" if said else "WRONG"
    return Finding(row, verdict, expected, got, said=said)


def judge_tokens(row: Row, read: Read) -> Finding:
    """Compare the training tokens of one step."""
    module, batches = row.make()
    score, said = _fit(module, batches)
    record = score.last_record
    doubts = " | ".join(m for m in said if "token" in m or "padding" in m)
    got = None if record is None else record.measurements.tokens
    return _compared(row, read(batches[0]), got, 0, doubts)


# ---------------------------------------------------------------- FLOP

WITHIN = 0.05


class _Trained(Specimen):
    def __init__(self, model: torch.nn.Module, loss: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(self.model, batch)


def _labelled(model: Any, batch: Tensor) -> Tensor:
    return model(input_ids=batch, labels=batch).loss


def _next_word(model: Any, batch: Tensor) -> Tensor:
    logits = model(batch)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


def _transformers(name: str, **options: Any) -> Specimen:
    import transformers

    kind = getattr(transformers, name)
    config = kind.config_class(vocab_size=256, **options)
    # PyTorch's counter passes over the fused kernels of attention and experts.
    config._attn_implementation = config._experts_implementation = "eager"
    return _Trained(kind(config), _labelled)


_LIKE_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def _by_hand(layers: int = 2, shared: int = 1) -> Specimen:
    class Stack(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = torch.nn.Embedding(256, 64), torch.nn.Embedding(128, 64)
            self.qkv = torch.nn.ModuleList(torch.nn.Linear(64, 192) for _ in range(layers))
            self.up = torch.nn.ModuleList(torch.nn.Linear(64, 256) for _ in range(layers))
            self.down = torch.nn.ModuleList(torch.nn.Linear(256, 64) for _ in range(layers))
            self.head = torch.nn.Linear(64, 256, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[1]
            h = self.words(x) + self.places(torch.arange(n))
            hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
            for _ in range(shared):
                for qkv, up, down in zip(self.qkv, self.up, self.down, strict=True):
                    q, k, v = qkv(h).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
                    scores = (q @ k.transpose(-1, -2) / 4).masked_fill(hidden, -torch.inf)
                    h = h + (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
                    h = h + down(up(h).relu())
            return self.head(h)

    return _Trained(Stack(), _next_word)


class _Recurrent(LSTM):
    def flops(self, batch: Tensor) -> float:
        """By hand: PyTorch's counter passes over the kernels of an LSTM."""
        products = [p for n, p in self.named_parameters() if p.ndim > 1 and "words" not in n]
        return 6.0 * sum(p.numel() for p in products) * batch[:, :-1].numel()


def _lora() -> Specimen:
    module = zoo_libraries.Peft(
        "LoraConfig", layers=6, r=4, target_modules=["c_attn"], fan_in_fan_out=True
    )
    module.model.config._attn_implementation = "eager"
    return _Trained(module.model, _labelled)


ARCHITECTURES: dict[str, Callable[[], Specimen]] = {
    "GPT-2": partial(
        _transformers, "GPT2LMHeadModel", n_embd=64, n_layer=3, n_head=4, n_positions=128
    ),
    "Llama, grouped queries": partial(_transformers, "LlamaForCausalLM", **_LIKE_LLAMA),
    "Qwen2, tied embeddings": partial(
        _transformers, "Qwen2ForCausalLM", tie_word_embeddings=True, **_LIKE_LLAMA
    ),
    "Mistral": partial(_transformers, "MistralForCausalLM", **_LIKE_LLAMA),
    "Phi": partial(_transformers, "PhiForCausalLM", **_LIKE_LLAMA),
    "GPT-NeoX": partial(
        _transformers, "GPTNeoXForCausalLM", **{**_LIKE_LLAMA, "num_key_value_heads": None}
    ),
    "OPT": partial(
        _transformers,
        "OPTForCausalLM",
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
    "Mixtral, two of four experts": partial(
        _transformers,
        "MixtralForCausalLM",
        **_LIKE_LLAMA,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "DeepSeek-V3, latent attention": partial(
        _transformers,
        "DeepseekV3ForCausalLM",
        **{**_LIKE_LLAMA, "num_key_value_heads": 4},
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "GPT-2, LoRA": _lora,
    "a GPT by hand": _by_hand,
    "one layer used six times": partial(_by_hand, 1, 6),
    "LSTM": _Recurrent,
}


def judge_flops(row: Row) -> Finding:
    """Compare the FLOP of one step with what PyTorch counts in another of the same batch."""
    module, batches = row.make()
    with FlopCounterMode(display=False) as counter:
        module.training_step(batches[0], 0).backward()
    expected = float(counter.get_total_flops())
    if isinstance(module, _Recurrent):
        expected = module.flops(batches[0])
    module.zero_grad()
    score, said = _fit(module, batches)
    record = score.last_record
    got = None if record is None else record.measurements.model_flops
    doubts = " | ".join(m for m in said if "FLOP" in m)
    convention = "" if record is None else record.measurements.provenance.get("model_flops", "")
    finding = _compared(row, expected, got, WITHIN, doubts)
    return replace(finding, source=convention)


def _with_batches(build: Callable[[], Specimen]) -> tuple[Specimen, Sequence[Any]]:
    try:
        return build(), [torch.randint(5, 60, (4, 32))]
    except NotBuilt:
        raise
    except TypeError as error:
        raise NotBuilt(str(error)) from error


def all_rows() -> Iterator[Row]:
    """Tokens of each form of a batch, then the FLOP of each architecture."""
    layouts = {row.name: row for row in zoo_own.all_rows()}
    for name, read in READS.items():
        row = layouts[name]
        yield Row(
            "training tokens",
            name,
            row.layout,
            row.make,
            ("exact", "doubtful"),
            judge=partial(judge_tokens, read=read),
        )
    for name, build in ARCHITECTURES.items():
        made = partial(_with_batches, build)
        layout = "within 5 % of torch's FlopCounterMode"
        yield Row("model_flops", name, layout, made, ("exact",), judge=judge_flops)
