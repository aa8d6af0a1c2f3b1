"""Small models of every class that transformers maps to a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WORDS = 99
PAD, BOS, EOS, PICTURE, MASK = range(5)  # the text is made of the words from 5 on

MASKED, TAGS = "masked words", "tags of words"  # which have no perplexity

TASKS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "sequence to sequence": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "vision and language": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "speech": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MASKED: modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    TAGS: modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}

MOST = 6_000_000
"""Parameters of a model that counts as small; some keep tables of a fixed size."""

_WIDTH = "hidden_size d_model n_embd dim embed_dim word_embed_proj_dim embedding_size emb_dim"
_WIDTH += " attention_hidden_size lru_width hidden_dim output_hidden_size projection_dim out_dim"
_WIDTH += " input_embedding_size output_embedding_size out_hidden_size vision_output_dim"
_LAYERS = "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth"
_LAYERS += " num_encoder_layers num_decoder_layers num_blocks"
_HEADS = "num_attention_heads n_head n_heads num_heads encoder_attention_heads"
_HEADS += " decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads"
_HEADS += " num_key_value_heads num_kv_heads attention_heads swa_num_attention_heads"
_HEADS += " swa_num_key_value_heads n_mamba_heads num_query_groups linear_num_heads"
_WIDE = "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner dff dim_ff"
_WIDE += " ffn_hidden_size moe_intermediate_size d_inner feed_forward_size mlp_dim"
_WIDE += " shared_expert_intermediate_size intermediate_size_mlp dense_intermediate_size"
_WIDE += " shared_intermediate_size expert_ffn_hidden_size moe_shared_expert_intermediate_size"
_EXPERTS = "num_experts num_local_experts n_routed_experts moe_num_experts"
_CHOSEN = "num_experts_per_tok moe_topk num_experts_per_token moe_k"

SIZES: dict[str, Any] = {
    **dict.fromkeys(_WIDTH.split(), 32),
    **dict.fromkeys(_LAYERS.split(), 2),
    **dict.fromkeys(_HEADS.split(), 4),
    **dict.fromkeys(_WIDE.split(), 48),
    **dict.fromkeys(_EXPERTS.split(), 4),
    **dict.fromkeys(_CHOSEN.split(), 2),
    "head_dim": 8,
    "attention_head_dim": 8,
    "attention_head_size": 8,
    "kv_channels": 8,
    "swa_head_dim": 8,
    "linear_head_dim": 8,
    "vocab_size": WORDS,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 8,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "image_size": 16,
    "patch_size": 8,
    "mrope_section": [1, 1, 2],
    "image_token_id": PICTURE,
    "image_token_index": PICTURE,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "decoder_start_token_id": EOS,
}

_FOUR_LAYERS = "kimi_linear lfm3 qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text qwen3_next"
_FOUR_LAYERS += " qwen4_exp qwen4_exp_text recurrent_gemma"  # of which the last one has attention

# What the rules above get wrong, by the model's type.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    **{kind: {"num_hidden_layers": 4} for kind in _FOUR_LAYERS.split()},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "layer_types": ["mamba", "attention"],
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "nemotron": {"num_key_value_heads": 4},
    "bailing_hybrid": {"num_hidden_layers": 4, "layer_group_size": 2},
    "longcat_flash": {},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 12,
    },
    "whisper": {"max_source_positions": 64, "max_target_positions": 64},
    "roc_bert": {"shape_vocab_size": 99, "pronunciation_vocab_size": 99},
    "xmod": {"default_language": "en_XX"},
}


def small_config(kind: type[PretrainedConfig], **more: Any) -> PretrainedConfig:
    """Return a configuration with everything in it small; ``more`` goes over the rules."""
    default = kind()
    values = {}
    for name, value in vars(default).items():
        number = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, dict) and "mrope_section" in value:
            values[name] = {**value, "mrope_section": SIZES["mrope_section"]}
        elif name in SIZES and (number or value is None):
            values[name] = min(value, SIZES[name]) if number and value > 0 else SIZES[name]
            if name.endswith(("token_id", "token_index")):
                values[name] = SIZES[name]
    values = {n: v for n, v in values.items() if getattr(default, n) is not None or n in _GIVEN}
    if getattr(default, "is_encoder_decoder", False):
        values["decoder_start_token_id"] = SIZES["decoder_start_token_id"]
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(default, name, None)
        if isinstance(part, PretrainedConfig):
            values[name] = small_config(type(part)).to_dict()
    return kind(**{**values, **EXCEPTIONS.get(kind.model_type, {}), **more})


_GIVEN = {"pad_token_id", "head_dim"}


def classes(task: str) -> dict[str, str]:
    """Return the model type of each class of a task; the first one where several share it."""
    found: dict[str, str] = {}
    for kind, names in TASKS[task].items():
        for name in (names,) if isinstance(names, str) else names:
            found.setdefault(name, kind)
    return found


def build(task: str, name: str, kind: str) -> PreTrainedModel:
    """Return a small model.

    Raises:
        ValueError: one that is not small.
    """
    import transformers

    model_class = getattr(transformers, name)
    config = model_class.config_class
    if not (inspect.isclass(config) and issubclass(config, PretrainedConfig)):
        config = CONFIG_MAPPING[kind]
    more = {}
    if task == "causal" and "is_decoder" in inspect.signature(config).parameters:
        more["is_decoder"] = True
    made = small_config(config, **more)
    if task == "causal" and hasattr(made, "is_decoder"):
        made.is_decoder = True
        made.is_encoder_decoder = False
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(made).parameters())
    if size > MOST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = model_class(made).eval()
    # Weights that their class leaves uninitialised would differ from run to run.
    for p in model.parameters():
        if not p.isfinite().all() or p.abs().max() > 1e3:
            p.data.normal_(std=0.02)
    return model


def dress(kind: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch with the pictures that a model of this type needs beside the text."""
    more = _PICTURES.get(kind)
    return batch if more is None else more(batch)


def _pixels(batch: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    rows = len(batch["labels"])
    picture = torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(rows))
    return {**batch, "pixel_values": picture}


def _no_text(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return _pixels({"labels": batch["labels"]})


def _in_front(count: int, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put as many picture tokens before the words as the picture has patches."""
    fill = {"input_ids": PICTURE, "attention_mask": 1, "labels": -100}
    return _pixels({k: F.pad(v, (count, 0), value=fill[k]) for k, v in batch.items()})


def _sound(mels: int | None, frames: int, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return spectra [B, mels, frames], or [B, frames, mels] without ``mels``."""
    shape = (16, frames) if mels is None else (mels, frames)
    generator = torch.Generator().manual_seed(0)
    spectra = torch.randn(len(batch["labels"]), *shape, generator=generator)
    return {"input_features": spectra, "labels": batch["labels"]}


_PICTURES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "git": _pixels,
    "blip": _pixels,
    "llava": partial(_in_front, 4),
    "vipllava": partial(_in_front, 4),
    "paligemma": partial(_in_front, 4),
    "vision-encoder-decoder": _no_text,
    "whisper": partial(_sound, 80, 128),
    "speech_to_text": partial(_sound, None, 80),
}
