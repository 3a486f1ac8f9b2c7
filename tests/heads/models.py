"""Tiny random models by family name, with values that are not the defaults: code that ignores one gives other numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other
VOCAB = 97
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALTERNATING = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
# What makes each family itself. Windows are 8 tokens; tests run contexts past them.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-3, "rope_theta": 500.0, "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 8, "head_dim": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3": {"head_dim": 12, "use_sliding_window": True, "sliding_window": 8, "layer_types": _ALTERNATING},
    "qwen3_moe": {
        "head_dim": 12,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1, 3],
        "norm_topk_prob": True,
    },
    "gemma": {"head_dim": 12, "tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 12,
        "sliding_window": 8,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 0.7,
        "query_pre_attn_scalar": 5,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "head_dim": 12,
        "sliding_window": 8,
        "layer_types": _ALTERNATING,
        "query_pre_attn_scalar": 5,
        "tie_word_embeddings": True,
        "final_logit_softcapping": 0.9,
    },
    "gpt_neox": {"rotary_pct": 0.5, "use_parallel_residual": False, "layer_norm_eps": 1e-3},
    "phi3": {"sliding_window": 8, "partial_rotary_factor": 0.5},
    "olmo2": {"rms_norm_eps": 1e-3},
    "smollm3": {"no_rope_layers": [1, 0, 0, 1], "tie_word_embeddings": True},
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.5,
        "tie_word_embeddings": True,
    },
    "starcoder2": {"sliding_window": 8, "use_bias": True},
}


def tiny_config(family: str, **overrides: Any) -> Any:
    """The family's config, a few thousand parameters big; `family` is a transformers model_type."""
    values = {**_COMMON, **FAMILIES.get(family, {}), **overrides}
    if "layer_types" in values and len(values["layer_types"]) != values["num_hidden_layers"]:
        del values["layer_types"]  # the family's own pattern
    return AutoConfig.for_model(family, **values)


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model whose weights are all random: norms, biases and embeddings, too, so that leaving one out changes the numbers."""
    generator = torch.Generator().manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family, **overrides), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1.0 + 0.3 * noise if is_gain else (0.1 if parameter.ndim == 1 else 0.3) * noise)
    return model.eval()


def save_tiny(family: str, folder: Path, seed: int = 0, max_shard_size: str = "50GB", **overrides: Any) -> PreTrainedModel:
    """Save a tiny model with `save_pretrained` and return it: the unsplit reference."""
    model = tiny_model(family, seed, **overrides)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def load_whole(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The unsplit reference as transformers loads it, with eager attention for soft-caps: sdpa of transformers 5.17 drops them."""
    is_capped = getattr(AutoConfig.from_pretrained(folder), "attn_logit_softcapping", None) is not None
    options: dict[str, Any] = {"attn_implementation": "eager"} if is_capped else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    return model.eval()


def random_ids(num_tokens: int, seed: int = 1) -> torch.Tensor:
    """(1, num_tokens)"""
    return torch.randint(0, VOCAB, (1, num_tokens), generator=torch.Generator().manual_seed(seed))
