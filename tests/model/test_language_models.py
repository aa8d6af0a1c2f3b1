"""Which transformers models of a module count as its language models."""

from __future__ import annotations

from conftest import VOCABULARY, tiny_llama
from torch import nn

from lightning_lscore.model.language_models import language_models


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
    assert language_models(both) == [both[1]]
