"""A split model is the unsplit one, bit for bit, for every family that is claimed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model import composition, family
from polyhead.heads.model import spec as spec_module
from polyhead.heads.model.checkpoint import Checkpoint
from tests.heads.model.splits import F32, LENGTH, Split, assert_composes, positions, split_tiny
from tests.heads.models import FAMILIES, random_ids, save_tiny, tiny_config


@pytest.mark.parametrize("split_layer", [1, 2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_composes_bit_for_bit(name: str, split_layer: int, tmp_path: Path) -> None:
    split = split_tiny(name, tmp_path, split_layer)
    assert_composes(split)
    composition.check_composition(split.trunk, split.head)


# Values whose neglect would go unseen if the tiny models were insensitive to them.
SENSITIVE: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 10000.0},
    "mistral": {"sliding_window": None},
    "qwen2": {"max_window_layers": 4},
    "qwen3": {"layer_types": ["full_attention"] * 4},
    "qwen3_moe": {"num_experts_per_tok": 1},
    "gemma2": {"attn_logit_softcapping": 50.0},
    "gemma3_text": {"final_logit_softcapping": None},
    "gpt_neox": {"use_parallel_residual": True},
    "phi3": {"sliding_window": None},
    "smollm3": {"no_rope_layers": [1, 1, 1, 1]},
    "granite": {"embedding_multiplier": 1.0},
    "starcoder2": {"sliding_window": None},
}


@pytest.mark.parametrize("name", SENSITIVE)
def test_tiny_models_feel_their_special_value(name: str, tmp_path: Path) -> None:
    """Otherwise the composition test would prove nothing about it."""
    whole = save_tiny(name, tmp_path)
    config = tiny_config(name, **SENSITIVE[name])
    plain = AutoModelForCausalLM.from_config(config, dtype=F32).eval()
    plain.load_state_dict(whole.state_dict())
    for model in (plain, whole):
        model.set_attn_implementation("eager")  # sdpa drops gemma2's soft-cap in older transformers
    with torch.no_grad():
        difference = (plain(random_ids(LENGTH)).logits - whole(random_ids(LENGTH)).logits).abs().max()
    assert difference > 1e-3


def test_eighty_layers_split_as_sparrow_did(tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path, None, num_hidden_layers=80, hidden_size=16, intermediate_size=16)
    assert (split.spec.split_layer, split.spec.num_head_layers) == (64, 16)
    assert_composes(split)


@pytest.mark.parametrize(("num_layers", "expected"), [(2, 1), (4, 3), (30, 24), (32, 26), (80, 64)])
def test_default_split_layer(num_layers: int, expected: int) -> None:
    assert spec_module.default_split_layer(num_layers) == expected


def test_bfloat16_composes(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    checkpoint = Checkpoint.open(tmp_path)
    spec = spec_module.describe(checkpoint, 2)
    trunk = family.build_trunk(checkpoint, spec, torch.bfloat16)
    tensors = family.initial_head(checkpoint, spec, OutputKind.OWN)
    head = family.build_head(spec, tensors, OutputKind.OWN, None, torch.bfloat16)
    assert_composes(Split(whole, checkpoint, spec, trunk, head))
    composition.check_composition(trunk, head)
    composition.check_composition(trunk, family.build_head(spec, tensors, OutputKind.OWN, None, F32))  # checked at the trunk's dtype


def test_the_check_finds_a_wrong_head(tmp_path: Path) -> None:
    split = split_tiny("granite", tmp_path)
    split.head.decoder.model.embedding_multiplier = 3.0  # the trap: applied twice
    with pytest.raises(FailedPrecondition, match=r"differs from the unsplit model, by up to \d"):
        composition.check_composition(split.trunk, split.head)


def test_a_gpu_may_round_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the check has a tolerance. Rounding is within it, and a split that is wrong is not."""
    monkeypatch.setattr(composition, "tolerance", lambda device, dtype: composition.TOLERANCES[dtype])
    split = split_tiny("granite", tmp_path)
    norm = next(module for name, module in split.head.decoder.named_modules() if name.endswith("model.norm"))
    whole = composition._whole_model
    monkeypatch.setattr(composition, "_whole_model", lambda *parts: nudged(whole(*parts)))
    composition.check_composition(split.trunk, split.head)
    norm.weight.data *= float("nan")
    with pytest.raises(FailedPrecondition, match="differs from the unsplit model"):
        composition.check_composition(split.trunk, split.head)
    norm.weight.data.fill_(1.0)
    split.head.decoder.model.embedding_multiplier = 3.0  # applied twice
    monkeypatch.setattr(composition, "tolerance", lambda *_: max(composition.TOLERANCES.values()))
    with pytest.raises(FailedPrecondition, match=r"by up to \d"):
        composition.check_composition(split.trunk, split.head)


def nudged(model: Any) -> Any:
    """The same model, whose logits another order of sums has rounded."""
    forward = model.forward

    def rounded(*inputs: Any, **options: Any) -> Any:
        output = forward(*inputs, **options)
        output.logits = output.logits * (1 + 1e-6)
        return output

    model.forward = rounded
    return model


@dataclass
class Plan:
    """Stands for the engine's plan object."""

    layers: list[int] = field(default_factory=list)
    windows: list[int | None] = field(default_factory=list)
    softcaps: list[float | None] = field(default_factory=list)
    scalings: list[float] = field(default_factory=list)


def _recording_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **arguments: Any
) -> tuple[torch.Tensor, None]:
    plan = arguments["plan"]
    assert attention_mask is None
    assert module.is_causal
    assert arguments["position_ids"].shape == (1, query.shape[2])
    plan.layers.append(module.layer_idx)
    plan.windows.append(arguments.get("sliding_window"))
    plan.softcaps.append(arguments.get("softcap"))
    plan.scalings.append(arguments["scaling"])
    groups = query.shape[1] // value.shape[1]
    return value.repeat_interleave(groups, dim=1).transpose(1, 2).contiguous(), None


AttentionInterface.register("test_recording", _recording_attention)
WINDOWS: dict[str, list[int | None]] = {  # of all four layers
    "mistral": [8, 8, 8, 8],
    "qwen2": [None, None, 8, 8],
    "qwen3": [8, None, None, 8],
    "gemma2": [8, None, 8, None],
    "gemma3_text": [8, None, None, 8],
    "phi3": [8, 8, 8, 8],
    "starcoder2": [8, 8, 8, 8],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_arguments_reach_the_attention_function(name: str, tmp_path: Path) -> None:
    """`plan`, window, soft-cap and scaling arrive at each layer, with its own number in the part and its original window."""
    split = split_tiny(name, tmp_path, 1)
    family.set_attention(split.trunk, "test_recording")
    lower, upper = Plan(), Plan()
    with torch.no_grad():
        states = split.trunk(random_ids(LENGTH), positions(), plan=lower)
        assert upper.layers == []
        family.set_attention(split.head, "test_recording")
        split.head(states, positions(), rows=torch.tensor([3]), plan=upper)
    assert (lower.layers, upper.layers) == ([0], [0, 1, 2])
    assert lower.windows + upper.windows == WINDOWS.get(name, [None] * 4)
    assert set(lower.softcaps + upper.softcaps) == {0.5 if name == "gemma2" else None}
    assert len(set(lower.scalings + upper.scalings)) == 1


def test_each_part_has_its_own_attention(tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path)
    family.set_attention(split.trunk, "eager")
    assert split.head.decoder.config._attn_implementation == "sdpa"
    assert split.checkpoint.config._attn_implementation != "eager"
    family.set_attention(split.head, "test_recording")
    composition.check_composition(split.trunk, split.head)
    assert split.head.decoder.config._attn_implementation == "test_recording"  # restored


def test_a_family_that_drops_arguments_is_found_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only falcon by name: a layer that does not hand its keyword arguments on."""
    split = split_tiny("llama", tmp_path)
    kind = type(split.whole.model.layers[0].self_attn)
    plain = kind.forward

    def deaf(self: Any, hidden_states: torch.Tensor, attention_mask: Any, position_embeddings: Any, **_: Any) -> Any:
        return plain(self, hidden_states, position_embeddings, attention_mask)

    monkeypatch.setattr(kind, "forward", deaf)
    with pytest.raises(FailedPrecondition, match="does not pass attention arguments on"):
        composition.check_composition(split.trunk, split.head)
