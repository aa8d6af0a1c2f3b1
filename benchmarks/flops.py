#!/usr/bin/env python3
"""LScore's FLOP of one training step beside PyTorch's FLOP counter, for many architectures.

Each is small, and trained for one step on sequences of 128 tokens, as ``Tracker`` sees it. The
table shows how LScore found its number, and the ratio of the two. With eager attention PyTorch
counts each product once, masked ones included, as LScore does. Where they differ by more than 5 %
on purpose the last column says why; else the exit status is 1.

    python benchmarks/flops.py
    python benchmarks/flops.py --only Mixtral "own GPT"
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lightning_lscore import Tracker

WORDS, LENGTH, ROWS = 256, 128, 2
LIMIT = 0.05
SIZE = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
HEADS = {"num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 96}
MLA = {
    **{"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    **{"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8},
    **{"qk_nope_head_dim": 16, "v_head_dim": 12, "num_key_value_heads": 4},
}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}


class OwnGPT(nn.Module):
    """A GPT by hand, with a learned table of positions; ``recompute`` checkpoints its layers."""

    def __init__(self, attention: str, recompute: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 64), nn.Embedding(LENGTH, 64)
        self.layers = nn.ModuleList(Layer(attention) for _ in range(4))
        self.head, self.recompute = nn.Linear(64, WORDS, bias=False), recompute

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x)
        return self.head(x)


class Layer(nn.Module):
    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention = attention
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)
        self.norm, self.mlp = (
            nn.LayerNorm(64),
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            y.unflatten(-1, (4, 16)).transpose(1, 2)
            for y in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        if self.attention == "function":
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.attention == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
            y = torch.einsum("bhqk,bhkd->bhqd", scores, v)
        else:
            y = (q @ k.mT).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class OwnLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.net = nn.Embedding(WORDS, 64), nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, WORDS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(self.words(ids))[0])


def hugging_face(name: str, head: str = "ForCausalLM", **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(**{**SIZE, **options})
        model: nn.Module = getattr(transformers, f"{name}{head}")(config)
        model.set_attn_implementation("eager")  # type: ignore[operator]
        model.set_experts_implementation("eager")  # type: ignore[operator]
        return model

    return make


def shared_layers() -> nn.Module:
    model: Any = hugging_face("Llama", use_cache=False)()
    for i in range(1, 4):
        model.model.layers[i] = model.model.layers[0]
    return model  # type: ignore[no-any-return]


def lora() -> nn.Module:
    import peft

    options = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    return peft.get_peft_model(hugging_face("Llama")(), options)  # type: ignore[no-any-return]


def half_frozen() -> nn.Module:
    model: Any = hugging_face("Llama")()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[:2].requires_grad_(False)
    return model  # type: ignore[no-any-return]


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "Llama": hugging_face("Llama"),
    "Llama, half frozen": half_frozen,
    "Llama with LoRA": lora,
    "Llama, one layer 4 times": shared_layers,
    "GPT-2": hugging_face("GPT2", "LMHeadModel"),
    "GPT-NeoX": hugging_face("GPTNeoX"),
    "OPT": hugging_face("OPT", ffn_dim=256, word_embed_proj_dim=64),
    "Mistral": hugging_face("Mistral", **HEADS),
    "Qwen3": hugging_face("Qwen3", **HEADS),
    "Gemma 2": hugging_face("Gemma2", **HEADS),
    "Phi-3": hugging_face("Phi3", pad_token_id=0),
    "OLMo 2": hugging_face("Olmo2"),
    "BERT": hugging_face("Bert", "ForMaskedLM"),
    "ALBERT": hugging_face("Albert", "ForMaskedLM", embedding_size=32),
    "Mixtral": hugging_face("Mixtral", **EXPERTS, **HEADS, num_local_experts=8),
    "Qwen3-MoE": hugging_face("Qwen3Moe", **EXPERTS, **HEADS, num_experts=8),
    "JetMoe": hugging_face(
        "JetMoe",
        **{"num_key_value_heads": 4, "kv_channels": 16, "num_local_experts": 8},
        **{"num_experts_per_tok": 2, "num_attention_heads": 8},
    ),
    "DeepSeek-V3": hugging_face("DeepseekV3", **EXPERTS, **MLA),
    "T5": hugging_face("T5", "ForConditionalGeneration", **T5),
    "BART": hugging_face("Bart", "ForConditionalGeneration", d_model=64, encoder_ffn_dim=160),
    "Mamba": hugging_face("Mamba", state_size=8),
    "Zamba 2": hugging_face(
        "Zamba2",
        **{"mamba_d_state": 4, "n_mamba_heads": 4, "mamba_headdim": 32, "chunk_size": 16},
        **{"layers_block_type": ["hybrid"] * 4, "num_mem_blocks": 1, "pad_token_id": 0},
        use_mem_rope=False,
    ),
    "own GPT, function": lambda: OwnGPT("function"),
    "own GPT, products": lambda: OwnGPT("products"),
    "own GPT, einsum": lambda: OwnGPT("einsum"),
    "own GPT, checkpointed": lambda: OwnGPT("products", recompute=True),
    "own LSTM": OwnLSTM,
    "own encoder of PyTorch": lambda: nn.Sequential(
        nn.Embedding(WORDS, 64),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 160, batch_first=True), 2),
        nn.Linear(64, WORDS),
    ),
}
"""By name, how to build each."""

OWN_RULES = {
    "own GPT, function": "PyTorch has no formula for its attention kernel on a CPU",
    "own GPT, checkpointed": "PyTorch counts what checkpointing computes again",
    "own LSTM": "PyTorch has no formula for the kernel of an LSTM on a CPU",
}
"""Where LScore's convention differs, and how."""


def train_step(model: nn.Module, ids: torch.Tensor) -> None:
    if hasattr(model, "config"):
        model(input_ids=ids, labels=ids).loss.backward()
    else:
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()


def compare(name: str) -> tuple[float, float, str]:
    """Return the FLOP of one step by LScore and by PyTorch, and how LScore found them."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().train()
    ids = torch.randint(5, WORDS, (ROWS, LENGTH))
    tracker = Tracker(model, warn=lambda message: None, tell=lambda message: None)
    with tracker.training():
        train_step(model, ids)
        tracker.count(ids)
    measured = tracker.score().measurements
    tracker.close()
    with FlopCounterMode(display=False) as counter:
        train_step(model, ids)
    how = measured.provenance["model_flops"].removeprefix("estimated: ")
    assert measured.model_flops is not None
    return measured.model_flops, counter.get_total_flops(), how


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[*ARCHITECTURES], metavar="NAME")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    unexplained = 0
    print(f"{'architecture':26} {'LScore':>10} {'PyTorch':>10} {'ratio':>6}  how")
    for name in arguments.only:
        ours, theirs, how = compare(name)
        ratio = ours / theirs
        says = "counted" if how.startswith("products counted") else "estimated"
        if abs(ratio - 1) > LIMIT:
            says += f"; {OWN_RULES.get(name, 'BEYOND 5 %')}"
            unexplained += name not in OWN_RULES
        print(f"{name:26} {ours:10.3e} {theirs:10.3e} {ratio:6.3f}  {says}", flush=True)
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
