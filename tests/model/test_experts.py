from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_lscore.model.experts import active_parameters

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(("name", "active"), [("Mixtral", 12.88e9), ("GptOss", 5.71e9)])
def test_active_parameters_are_those_that_were_published(name, active):
    """Mixtral 8x7B: 12.9B; gpt-oss-120b: 5.13B and an embedding of 0.58B, which they leave out."""
    config = getattr(transformers, f"{name}Config")()
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert active_parameters(nn.ModuleList([model])) == pytest.approx(active, rel=1e-3)


def dense(**options):
    size = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**size, num_attention_heads=2, **options)
    return transformers.LlamaForCausalLM(config)


def test_all_parameters_of_a_dense_model_are_active():
    model = dense()
    assert active_parameters(model) == sum(p.numel() for p in model.parameters())


def test_it_is_not_known_without_a_known_structure():
    """No transformers model; or experts, and no word of how many a token passes."""
    assert active_parameters(nn.Linear(3, 4)) is None
    model = dense()
    model.model.layers[0].experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
    assert active_parameters(model) is None
    model.config.num_experts_per_tok = 1
    total = sum(p.numel() for p in model.parameters())
    assert active_parameters(model) == total - 3 * (16 * 16 + 16)
