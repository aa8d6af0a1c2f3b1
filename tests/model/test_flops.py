from __future__ import annotations

import math
import sys

import pytest
import torch
from conftest import HuggingFaceLM, tiny_llama
from torch import nn

from lightning_lscore.model.counted_step import CountedStep
from lightning_lscore.model.flops import FlopsModel, flops_of

transformers = pytest.importorskip("transformers")

T = 64
SIZE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": T,
}
MOE = {"num_key_value_heads": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
GPT2 = {"vocab_size": 128, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": T}
MLA = {
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
BASE = "6 FLOP per trainable parameter and token, 4 per frozen one"


def make(name: str, attention: str = "sdpa", **options) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.train()


def llama(**options) -> nn.Module:
    return make("Llama", **SIZE, **options)


def counted(model: nn.Module, length: int = T) -> float:
    """FLOP per token of a training step, by PyTorch's counter."""
    torch.manual_seed(0)
    ids = torch.randint(1, 128, (2, length))
    with CountedStep() as step:
        model(input_ids=ids, labels=ids).loss.backward()
    return step.flops / ids.numel()


# ---------------------------------------------------------------------- agreement with a count


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Llama", SIZE),
        ("Llama", {**SIZE, "tie_word_embeddings": True, "num_key_value_heads": 2}),
        ("Llama", {**SIZE, "head_dim": 32}),
        ("GPT2", GPT2),
        ("Mixtral", {**SIZE, **MOE, "num_local_experts": 8}),
        ("Qwen2Moe", {**SIZE, **MOE, "num_experts": 8, "shared_expert_intermediate_size": 128}),
        ("Qwen3Moe", {**SIZE, **MOE, "num_experts": 8}),
    ],
)
def test_the_estimate_is_what_a_step_executes(name, options, attention):
    """Within 2 %: weights of norms, and biases, are parameters but no products."""
    model = make(name, attention, **options)
    assert flops_of(model).at(T) == pytest.approx(counted(model), rel=0.02)


def test_queries_and_values_of_different_size_agree_with_a_count():
    """Multi-head latent attention, whose head_dim is that of its rotated part alone."""
    model = make("DeepseekV3", **SIZE, **MOE | {"num_key_value_heads": 4}, **MLA)
    assert flops_of(model).at(T) == pytest.approx(counted(model), rel=0.02)


@pytest.mark.parametrize("length", [16, 64])
def test_the_estimate_follows_the_length_of_the_sequences(length):
    """Attention's share goes with T; the rest does not."""
    model = llama()
    assert flops_of(model).at(length) == pytest.approx(counted(model, length), rel=0.01)


def test_frozen_layers_below_all_that_learns_agree_with_a_count():
    """They have a forward pass alone, in their attention too."""
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[:2].requires_grad_(False)
    flops = flops_of(model)
    assert flops.at(T) == pytest.approx(counted(model), rel=0.02)
    assert "forward alone in the 2 frozen layers below all that learn" in flops.convention


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_lora_agrees_with_a_count():
    """A frozen weight in each layer still passes the gradient on: 4, but for the lowest few."""
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    model = peft.get_peft_model(llama(), options)
    assert flops_of(model).at(T) == pytest.approx(counted(model), rel=0.03)


# ---------------------------------------------------------------------- the estimate


def test_any_module_needs_six_a_trained_and_four_a_frozen_parameter():
    """With embeddings, since nothing tells whether they are the output layer too."""
    module = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    flops = flops_of(module)
    assert (flops.per_token, flops.at(1000)) == (480, 480)
    assert flops.convention == (
        f"{BASE}; attention apart: the module holds no transformers model; "
        "embeddings counted like other weights"
    )
    module["head"].requires_grad_(False)
    assert flops_of(module).per_token == 6 * 40 + 4 * 40
    module["head"].weight = module["embed"].weight
    assert flops_of(module).per_token == 240


def test_parameters_that_zero3_emptied_count_by_their_real_size():
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(0))
    module.weight.ds_numel = 1000
    assert flops_of(module).per_token == 6000


def test_transformers_is_not_needed(monkeypatch):
    """Nothing imports it, and without it no model is one of its."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.modeling_utils", None)
    assert flops_of(nn.Linear(3, 2)).per_token == 6 * 8


def test_a_model_inside_a_lightning_module_is_found():
    """tiny_llama: one layer of width 16, so 12·1·16 FLOP a position."""
    module = HuggingFaceLM()
    flops = flops_of(module)
    n = sum(p.numel() for p in module.parameters()) - 32 * 16
    assert flops == FlopsModel(
        per_token=6.0 * n,
        per_position={math.inf: 192.0},
        convention=f"{BASE}; 0 for embeddings that are only looked up; "
        "12 L H Q T for attention (from LlamaConfig)",
    )


def test_several_models_add_up():
    """As a student and its teacher."""
    pair = nn.ModuleList([tiny_llama(), tiny_llama().requires_grad_(False)])
    one, two = flops_of(tiny_llama()), flops_of(pair)
    assert two.per_position == {math.inf: 2 * 192.0}
    assert two.per_token == pytest.approx(one.per_token * (1 + 4 / 6))
    assert two.convention == one.convention


def test_embeddings_count_where_the_output_layer_is_not_known():
    """A base model: the user's own code may multiply by its embeddings."""
    model = llama().model
    n = sum(p.numel() for p in model.parameters())
    assert flops_of(model).per_token == 6 * n
    assert "; embeddings counted like other weights; " in flops_of(model).convention


def test_windows_limit_how_far_a_token_looks():
    """All layers of Mistral, some of Gemma 3."""
    model = make("Mistral", **SIZE, sliding_window=16)
    flops = flops_of(model)
    assert flops.per_position == {16: 12 * 4 * 64}
    assert flops.at(64) == flops.at(16) == flops.at(8) + 12 * 4 * 64 * 8
    assert flops.convention.endswith(
        "12 L H Q T for attention (from MistralConfig, T at most 16 in layers with that window)"
    )
    types = ["sliding_attention"] * 3 + ["full_attention"]
    options = {"sliding_window": 16, "layer_types": types, "head_dim": 16}
    flops = flops_of(make("Gemma3Text", **SIZE, **options, num_key_value_heads=2))
    assert flops.per_position == {16: 12 * 3 * 64, math.inf: 12 * 64}


@pytest.mark.parametrize(
    ("name", "options", "per_position"),
    [
        # A window that is not in use; one under another name; chunks; of the best of a selection.
        ("Qwen2", {**SIZE, "sliding_window": 16, "use_sliding_window": False}, {math.inf: 3072}),
        ("Mistral", {**SIZE, "sliding_window": 16, "use_sliding_window": False}, {math.inf: 3072}),
        (
            "GPTNeo",
            {
                "hidden_size": 64,
                "num_layers": 4,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 2]],
                "window_size": 16,
            },
            {math.inf: 1536, 16: 1536},
        ),
        ("DeepseekV32", {**SIZE, **MLA, "index_topk": 16}, {16: 6 * 4 * 4 * (24 + 12)}),
    ],
)
def test_kinds_of_attention_are_told_apart(name, options, per_position):
    with torch.device("meta"):
        flops = flops_of(make(name, "eager", **options))
    assert flops.per_position == per_position


def test_layers_that_differ_count_by_their_own_config():
    """Gemma 4's heads are larger in layers that see everything: 4·32 against 4·16."""
    options = {"head_dim": 16, "global_head_dim": 32, "sliding_window": 16, **SIZE}
    types = ["sliding_attention"] * 3 + ["full_attention"]
    config = transformers.Gemma4TextConfig(**options, num_key_value_heads=2, layer_types=types)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert flops_of(model).per_position == {16: 12 * 3 * 64, math.inf: 12 * 128}


def test_layers_with_a_state_count_by_their_parameters():
    """And the record says so."""
    config = transformers.JambaConfig(
        **SIZE, num_experts=4, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False
    )
    flops = flops_of(transformers.AutoModelForCausalLM.from_config(config))
    assert flops.per_position == {math.inf: 12 * 2 * 64}
    assert "; 2 of 4 experts; " in flops.convention
    assert flops.convention.endswith("parameters alone in 2 linear_attention layers")


def test_the_text_config_of_a_model_of_images_counts(monkeypatch):
    """Its tower of images reads no tokens."""
    text = transformers.LlamaConfig(**SIZE)
    vision = transformers.CLIPVisionConfig(**{**SIZE, "image_size": 28, "patch_size": 14})
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=5)
    )
    assert flops_of(model).per_position == {math.inf: 12 * 4 * 64}
    tower = transformers.CLIPVisionModel(vision)
    assert flops_of(tower).per_position == {}
    assert flops_of(nn.ModuleList([tower, llama()])).per_position == {math.inf: 12 * 4 * 64}

    def refuse():
        raise NotImplementedError  # as transformers does where there are none

    monkeypatch.setattr(tower, "get_input_embeddings", refuse)
    assert flops_of(tower).per_position == {}


def test_an_encoder_decoder_counts_by_its_parameters():
    """The length of its target is not in the batch's tokens."""
    options = {"d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**options))
    flops = flops_of(model)
    assert flops.per_position == {}
    assert flops.convention.endswith("attention apart: T5Config is of an encoder-decoder")


def test_a_config_without_layers_or_heads_counts_by_its_parameters():
    """And the record says so."""
    model = llama()
    model.config.num_attention_heads = 0
    assert flops_of(model).per_position == {}
    assert flops_of(model).convention.endswith("parameters alone in 4 full_attention layers")
    model.config.num_hidden_layers = 0
    assert flops_of(model).per_position == {}
    assert flops_of(model).convention.endswith("LlamaConfig tells no number of layers")


def test_an_encoder_and_a_decoder_made_one_count_by_their_parameters():
    """Each has a config of its own, and neither is of an encoder-decoder."""
    small = {**SIZE, "num_hidden_layers": 1}
    configs = transformers.BertConfig(**small), transformers.BertConfig(**small)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*configs)
    flops = flops_of(transformers.EncoderDecoderModel(config))
    assert flops.per_position == {}
    assert "encoder-decoder" in flops.convention or "no more is known" in flops.convention


def test_a_model_of_several_texts_counts_by_its_parameters(monkeypatch):
    """transformers refuses to say which config is that of the text."""

    def refuse():
        raise ValueError("Multiple valid text configs were found")

    model = llama()
    n = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(model.config, "get_text_config", refuse)
    flops = flops_of(model)
    assert flops == FlopsModel(
        per_token=6 * n, convention=f"{BASE}; no more is known of LlamaConfig"
    )


# ---------------------------------------------------------------------- experts


@pytest.mark.parametrize(("name", "active"), [("Mixtral", 12.75e9), ("GptOss", 5.13e9)])
def test_active_parameters_are_those_that_were_published(name, active):
    """Mixtral 8x7B: 12.9B, 0.13B of them looked up; gpt-oss-120b: 5.13B, without those."""
    with torch.device("meta"):
        model = make(name, "eager")
    assert flops_of(model).per_token / 6 == pytest.approx(active, rel=1e-3)


class OldExperts(nn.Module):
    """As models held them before transformers stacked their weights, and with shared ones."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(64, 64, bias=False) for _ in range(n)])
        self.shared_experts = nn.Linear(64, 64, bias=False)


def test_experts_in_a_list_count_by_the_share_that_is_active():
    """2 of 8; the shared one always."""
    model, dense = llama(), flops_of(llama())
    model.config.num_experts_per_tok = 2
    for layer in model.model.layers:
        layer.moe = OldExperts(8)
    flops = flops_of(model)
    assert flops.per_token == dense.per_token + 6 * 4 * (2 + 1) * 64 * 64
    assert "; 2 of 8 experts; " in flops.convention


@pytest.mark.parametrize("active", [None, 0, 9, "two"])
def test_all_experts_count_where_it_is_not_known_how_many_are_active(active):
    model, dense = llama(), flops_of(llama())
    model.config.num_experts_per_tok = active
    model.model.layers[0].moe = OldExperts(8)
    flops = flops_of(model)
    assert flops.per_token == dense.per_token + 6 * (8 + 1) * 64 * 64
    assert "; all experts, as it is not known how many a token needs; " in flops.convention


def test_frozen_experts_count_by_the_share_that_is_active():
    """4 for each of them that a token passes."""
    model = make("Mixtral", **SIZE, **MOE, num_local_experts=8)
    before = flops_of(model).per_token
    experts = model.model.layers[3].mlp.experts.requires_grad_(False)
    n = sum(p.numel() for p in experts.parameters())
    assert flops_of(model).per_token == before - 2 * n / 4


# ---------------------------------------------------------------------- what is frozen


def test_a_trained_prefix_keeps_the_gradient_through_all_layers():
    """It is made outside of the model, and enters below."""
    model = llama()
    model.requires_grad_(False)
    prefix = nn.Embedding(4, 64)
    n = sum(p.numel() for p in model.parameters()) - 128 * 64
    flops = flops_of(nn.ModuleList([model, prefix]))
    assert flops.per_token == 4 * n + 6 * prefix.weight.numel()
    assert flops.per_position == {math.inf: 12 * 4 * 64}


def test_trained_embeddings_keep_the_gradient_through_all_layers():
    """Those that are the output layer too, as well."""
    model = llama(tie_word_embeddings=True)
    model.model.layers.requires_grad_(False)
    n = sum(p.numel() for p in model.model.layers.parameters())
    assert flops_of(model).per_token == 4 * n + 6 * (128 * 64 + 64)


# ---------------------------------------------------------------------- given by the user


def test_a_given_number_is_taken_as_it_is():
    flops = FlopsModel.given(7)
    assert flops == FlopsModel(per_token=7.0, convention="FLOP per token as given")
    assert flops.total({0: 2, 12: 3}) == 35


@pytest.mark.parametrize("given", [0, -1, math.inf, math.nan])
def test_a_given_number_must_be_one(given):
    with pytest.raises(ValueError, match="flops_per_token: expected a number > 0 or"):
        FlopsModel.given(given)


def test_totals_are_sums_over_the_lengths():
    """Tokens in sequences of unknown length have no attention."""
    flops = FlopsModel(per_token=10, per_position={math.inf: 2, 4: 1}, convention="")
    assert (flops.at(0), flops.at(3), flops.at(6)) == (10, 19, 26)
    assert flops.total({0: 5, 3: 2, 6: 1}) == 50 + 38 + 26
    assert flops.total({}) == 0
