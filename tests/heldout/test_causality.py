"""A model that sees the tokens it is to predict has no perplexity."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_lscore.heldout.causality import check_is_causal
from lightning_lscore.heldout.text import evaluate_text

VOCABULARY = 32
TOKENS = torch.randint(0, VOCABULARY, (40,), generator=torch.Generator().manual_seed(0))


def bytes_of(text, **options):
    return {"input_ids": [letter % VOCABULARY for letter in text.encode()]}


class Mean(nn.Module):
    """Predicts from the mean of all tokens, or of those up to each one."""

    def __init__(self, causal, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.causal = causal
        self.to(dtype)

    def forward(self, ids):
        x = self.embed(ids)
        places = torch.arange(1, ids.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.head(x.cumsum(1) / places if self.causal else x + x.mean(1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_evidence_tells_a_causal_model_from_one_that_sees_all(dtype):
    """Whatever its class is called, and in any precision."""
    check_is_causal(Mean(True, dtype), TOKENS)
    with pytest.raises(ValueError, match="Mean, which sees the tokens it is to predict"):
        check_is_causal(Mean(False, dtype), TOKENS)


def test_a_text_of_one_token_over_and_over_tells_too():
    check_is_causal(Mean(True), TOKENS * 0)
    with pytest.raises(ValueError, match="sees the tokens"):
        check_is_causal(Mean(False), TOKENS * 0)


class Remembering(Mean):
    """Goes on where the text before ended."""

    calls = 0

    def forward(self, ids):
        self.calls += 1
        return super().forward(ids) + self.calls


class Drawing(Mean):
    """Draws at random, whatever the mode."""

    def forward(self, ids):
        return super().forward(ids) + torch.randn(VOCABULARY)


class Last(Mean):
    """Returns the last row alone."""

    def forward(self, ids):
        return super().forward(ids)[:, -1:]


class Fixed(Mean):
    """Takes texts of 16 tokens."""

    def forward(self, ids):
        if ids.shape[1] != 16:
            raise RuntimeError("expected 16 tokens")
        return super().forward(ids)


@pytest.mark.parametrize("kind", [Remembering, Drawing, Last, Fixed])
def test_what_moves_logits_without_a_change_of_the_text_is_not_taken_for_sight(kind):
    check_is_causal(kind(True), TOKENS[:16])


def test_a_model_that_takes_no_short_text_is_looked_at_in_a_window():
    with pytest.raises(ValueError, match="sees the tokens"):
        check_is_causal(Fixed(False), TOKENS[:16])


def test_an_encoder_decoder_is_refused_by_its_config():
    model = Mean(True)
    model.config = SimpleNamespace(is_encoder_decoder=True)
    with pytest.raises(ValueError, match="an encoder-decoder: its encoder reads the whole text"):
        evaluate_text(model, bytes_of, "hello world", context_length=4, add_bos=False)


def bert(**options):
    from transformers import BertConfig

    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        **options,
    )


def test_a_masked_model_has_no_perplexity():
    """And the same layers with a causal mask have one."""
    from transformers import BertForMaskedLM, BertLMHeadModel

    text = "hello world " * 4
    with pytest.raises(ValueError, match=re.escape("got BertForMaskedLM, which sees")):
        evaluate_text(BertForMaskedLM(bert()), bytes_of, text, context_length=16, add_bos=False)
    causal = BertLMHeadModel(bert(is_decoder=True))
    result = evaluate_text(causal, bytes_of, text, context_length=16, add_bos=False)
    assert result.tokens == len(text) - 1
