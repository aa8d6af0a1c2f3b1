"""Adapters wrap a model; what is scored is the model with them."""

from __future__ import annotations

import pytest
import torch
from conftest import HuggingFaceLM, loader, reference_perplexity, tiny_llama
from torch import nn

from lightning_lscore import LScore


class LoraLinear(nn.Module):
    """A frozen layer and, beside it, a product of two small ones that learns."""

    def __init__(self, base_layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class LoraModel(nn.Module):
    """As PEFT's: puts adapters into the model, and passes calls on."""

    def __init__(self, model: nn.Module, directly: bool) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.directly = directly
        for layer in model.model.layers:
            layer.mlp.down_proj = LoraLinear(layer.mlp.down_proj)

    def forward(self, *args, **kwargs):
        # PEFT did so up to 0.17, and calls the model since.
        return self.model.forward(*args, **kwargs) if self.directly else self.model(*args, **kwargs)


class PeftModel(nn.Module):
    def __init__(self, base_model: LoraModel) -> None:
        super().__init__()
        self.base_model = base_model

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        return self.base_model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
        )


def by_hand(directly: bool) -> nn.Module:
    return PeftModel(LoraModel(tiny_llama(), directly))


def by_peft(method: str, **options) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(tiny_llama(), getattr(peft, method)("CAUSAL_LM", **options))


ADAPTERS = {
    "by hand": lambda: by_hand(directly=False),
    "by hand, forward called directly": lambda: by_hand(directly=True),
    "PEFT's LoRA": lambda: by_peft("LoraConfig", r=2, target_modules=["down_proj"]),
}


class Adapted(HuggingFaceLM):
    def __init__(self, model: nn.Module, labels: bool = True) -> None:
        super().__init__()
        self.model, self.labels = model, labels
        for parameter in model.parameters():
            if parameter.requires_grad:  # adapters begin without an effect
                nn.init.normal_(parameter)

    def validation_step(self, batch, batch_idx):
        if self.labels:
            return self.model(**batch).loss
        return self.model(input_ids=batch["input_ids"]).logits.mean()

    def configure_optimizers(self):
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)


OLD_NAMES = pytest.mark.filterwarnings(
    "ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"
)


@OLD_NAMES
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)
def test_a_model_with_adapters_is_scored_with_them(make, labels, trainer):
    lscore, model = LScore(), Adapted(make(), labels)
    trainer(lscore, max_epochs=2).fit(model, loader(8), loader(7))
    m = lscore.last_record.measurements

    def adapted(ids):
        return model.model.eval()(input_ids=ids)

    assert m.validation_tokens == 7 * 11
    assert m.perplexity == pytest.approx(reference_perplexity(adapted, loader(7)), rel=1e-6)
    bare = reference_perplexity(tiny_llama().eval(), loader(7))
    assert m.perplexity != pytest.approx(bare, rel=1e-3)


@OLD_NAMES
def test_behind_virtual_tokens_the_first_token_counts_as_well(trainer):
    """It is predicted too: from the prompt that is learned."""
    lscore = LScore()
    model = Adapted(by_peft("PromptTuningConfig", num_virtual_tokens=3))
    (result,) = trainer(lscore).validate(model, loader(4), verbose=False)
    (batch,) = loader(4)
    with torch.no_grad():
        loss = model.model.eval()(**batch).loss.double()
    assert result["lscore/validation_tokens"] == 4 * 12
    assert result["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-6)
