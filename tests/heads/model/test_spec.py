"""What a trunk is named after, and models that cannot be split, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.model import family
from polyhead.heads.model import spec as spec_module
from polyhead.heads.model.checkpoint import Checkpoint
from tests.heads.model.splits import F32
from tests.heads.models import save_tiny, tiny_config


def test_trunk_id_names_what_is_computed(tmp_path: Path) -> None:
    def identity(folder: str, split_layer: int = 2, **overrides: Any) -> str:
        save_tiny("llama", tmp_path / folder, **overrides)
        checkpoint = Checkpoint.open(tmp_path / folder)
        return spec_module.trunk_id(checkpoint, spec_module.describe(checkpoint, split_layer))

    base = identity("base")
    assert len(base) == 64
    assert identity("again") == base
    assert identity("sharded", max_shard_size="20KB") == base
    assert identity("other_eos", eos_token_id=5) == base
    assert identity("seed", seed=1) != base
    assert identity("config", rope_theta=600.0) != base
    assert identity("layer", 3) != base


def test_trunk_id_does_not_change_with_the_head(tmp_path: Path) -> None:
    whole = save_tiny("llama", tmp_path / "a")
    with torch.no_grad():
        whole.model.layers[3].mlp.up_proj.weight.zero_()
        whole.lm_head.weight.zero_()
    whole.save_pretrained(tmp_path / "b")
    first, second = (Checkpoint.open(tmp_path / folder) for folder in "ab")
    assert spec_module.trunk_id(first, spec_module.describe(first, 3)) == spec_module.trunk_id(second, spec_module.describe(second, 3))


def test_a_checkpoint_of_the_base_model_alone_is_the_same_trunk(tmp_path: Path) -> None:
    whole = save_tiny("llama", tmp_path / "whole", tie_word_embeddings=True)
    whole.model.save_pretrained(tmp_path / "base")
    first, second = (Checkpoint.open(tmp_path / folder) for folder in ("whole", "base"))
    specs = spec_module.describe(first, 2), spec_module.describe(second, 2)
    assert "layers.0.mlp.up_proj.weight" in specs[1].trunk_sources
    assert spec_module.trunk_id(first, specs[0]) == spec_module.trunk_id(second, specs[1])


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("gpt2", {}, "positions are not rotary"),
    "opt": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 32}, "positions are not rotary"),
    "bloom": ("bloom", {}, "positions are not rotary"),
    "falcon": ("falcon", {}, "does not pass attention arguments on"),
    "longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 64,
                "partial_rotary_factor": 1.0,
            },
        },
        r"longest position in a batch \(longrope\)",
    ),
    "dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        r"longest position in a batch \(dynamic\)",
    ),
    "linear attention": (
        "qwen3_next",
        {"layer_types": ["linear_attention", "full_attention"] * 2},
        r"another kind .* \(linear_attention\)",
    ),
    "shared keys and values": ("gemma3n_text", {"num_kv_shared_layers": 2}, "share keys and values"),
    "per-layer embeddings": ("gemma3n_text", {"num_kv_shared_layers": 0}, "per-layer embeddings"),
    "encoder-decoder": ("t5", {}, "encoder-decoder"),
    "encoder": ("bert", {}, "not rotary"),
    "vision": ("vit", {}, "no causal language model"),
    "several towers": ("gemma3", {}, "several towers"),
    "bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}, "not causal"),
    "other conversion": ("mixtral", {}, "computes this family's tensors while loading"),
    "quantised": ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_reason(case: str, tmp_path: Path) -> None:
    name, overrides, reason = REFUSED[case]
    config = tiny_config(name, **overrides)
    with pytest.raises(FailedPrecondition, match=f"{reason}.*model_type"):
        spec_module.describe(Checkpoint(tmp_path, config, {}), 2)


@pytest.mark.parametrize("split_layer", [-1, 0, 4, 99])
def test_split_layer_must_lie_inside(split_layer: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"inside the model's 4 layers: {split_layer}"):
        spec_module.describe(Checkpoint(tmp_path, tiny_config("llama"), {}), split_layer)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    rest = {name: info for name, info in checkpoint.tensors.items() if name != "model.layers.1.mlp.up_proj.weight"}
    damaged = Checkpoint(tmp_path, checkpoint.config, rest)
    with pytest.raises(FailedPrecondition, match=r"no tensor for this part .*: 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        family.build_trunk(damaged, spec_module.describe(damaged, 2), F32)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    wide = Checkpoint(tmp_path, tiny_config("llama", intermediate_size=64), checkpoint.tensors)
    with pytest.raises(FailedPrecondition, match=r"has shape .* the config says"):
        family.build_trunk(wide, spec_module.describe(wide, 2), F32)
