"""What the structure of a transformers model tells of its FLOP, and what it does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_lscore.model.counted_step import CountedStep
from lightning_lscore.model.flops import flops_of

transformers = pytest.importorskip("transformers")

T = 64
SIZE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": T,
}


def counted(model: nn.Module) -> float:
    ids = torch.randint(5, 128, (2, T))
    with CountedStep() as step:
        model(input_ids=ids, labels=ids).loss.backward()
    return step.flops / ids.numel()


def llama(**options):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE | options))


def one_layer_for_all():
    model = llama(use_cache=False)
    for i in range(1, 6):
        model.model.layers[i] = model.model.layers[0]
    return model


def albert(**options):
    options = {"embedding_size": 32, **SIZE, **options}
    return transformers.AlbertForMaskedLM(transformers.AlbertConfig(**options))


@pytest.mark.parametrize("make", [one_layer_for_all, albert, lambda: albert(num_hidden_groups=2)])
def test_shared_layers_count_as_often_as_they_are_used(make):
    """And a count is preferred to so much of a guess."""
    model = make()
    flops = flops_of(model)
    assert flops.at(T) == pytest.approx(counted(model), rel=0.03)
    assert "shared layers" in flops.lacks


def test_what_a_shared_layer_holds_for_each_of_its_uses_is_used_once():
    """Zamba2's adapters: 6 in a list, beside weights that are used 6 times."""
    model, before = one_layer_for_all(), flops_of(one_layer_for_all()).per_token
    shared = model.model.layers[0]
    shared.adapters = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(6))
    assert flops_of(model).per_token == before + 6 * 6 * 64 * 64
    shared.adapters = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(2))
    assert flops_of(model).per_token == before + 6 * 6 * 2 * 64 * 64


@pytest.mark.parametrize("width", [96, 512])
def test_experts_are_told_by_their_shape_too(width):
    """JetMoe calls neither its experts nor those of its attention so."""
    config = transformers.JetMoeConfig(
        vocab_size=128,
        hidden_size=64,
        num_hidden_layers=3,
        num_key_value_heads=4,
        kv_channels=16,
        intermediate_size=width,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    model = transformers.JetMoeForCausalLM(config)
    flops = flops_of(model)
    assert flops.at(T) == pytest.approx(counted(model), rel=0.03)
    assert "2 of 8 experts" in flops.convention
    assert not flops.lacks


def test_experts_in_a_list_of_another_name_are_found():
    """As many modules as the config has experts; not the layers, though there are as many."""
    model, dense = llama(num_hidden_layers=8), flops_of(llama(num_hidden_layers=8)).per_token
    model.config.num_experts, model.config.num_experts_per_tok = 8, 2
    assert flops_of(model).per_token == dense
    model.config.num_experts = 4
    model.model.layers[0].ffn = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(4))
    assert flops_of(model).per_token == dense + 6 * 2 * 64 * 64
    assert "2 of 4 experts" in flops_of(model).convention


@pytest.mark.parametrize(
    ("make", "lacks"),
    [
        (llama, ""),
        (lambda: nn.ModuleList([llama(), nn.Linear(64, 16)]), ""),
        (lambda: llama().model, "embeddings counted like other weights"),
        (
            lambda: nn.ModuleList([llama(), nn.Linear(640, 64)]),
            "what is done with the parameters outside of the transformers model",
        ),
        (
            lambda: nn.Linear(4, 4),
            "attention apart: the module holds no transformers model",
        ),
        (
            lambda: transformers.MambaForCausalLM(
                transformers.MambaConfig(
                    vocab_size=128, hidden_size=64, state_size=4, num_hidden_layers=2
                )
            ),
            "parameters alone in 2 linear_attention layers",
        ),
    ],
)
def test_an_estimate_says_what_it_lacks(make, lacks):
    """Nothing, for a transformer in transformers; a small head beside it is little."""
    assert flops_of(make()).lacks == lacks
