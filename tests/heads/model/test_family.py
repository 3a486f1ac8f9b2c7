"""A split model is the unsplit one, bit for bit, for every family that is claimed; what cannot be split says why."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model import composition, family, skeleton
from polyhead.heads.model import spec as spec_module
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import HeadModule, TrunkModule
from polyhead.heads.model.spec import ModelSpec
from tests.heads.models import FAMILIES, VOCAB, random_ids, save_tiny, tiny_config

LENGTH = 40  # five windows of 8
F32 = torch.float32


@dataclass
class Split:
    whole: PreTrainedModel
    checkpoint: Checkpoint
    spec: ModelSpec
    trunk: TrunkModule
    head: HeadModule


def split_tiny(name: str, folder: Path, split_layer: int | None = 2, **overrides: Any) -> Split:
    whole = save_tiny(name, folder, **overrides)
    checkpoint = Checkpoint.open(folder)
    spec = spec_module.describe(checkpoint, split_layer)
    trunk = family.build_trunk(checkpoint, spec, F32)
    return Split(whole, checkpoint, spec, trunk, policy_head(checkpoint, spec, trunk))


def policy_head(checkpoint: Checkpoint, spec: ModelSpec, trunk: TrunkModule) -> HeadModule:
    output = OutputKind.TIED if spec.tied else OutputKind.OWN
    tensors = family.initial_head(checkpoint, spec, output)
    return family.build_head(spec, tensors, output, trunk.embedding if spec.tied else None, F32)


def positions(length: int = LENGTH) -> torch.Tensor:
    return torch.arange(length)[None]


@torch.no_grad()
def assert_composes(split: Split, length: int = LENGTH) -> None:
    ids = random_ids(length)
    composed = split.head(split.trunk(ids, positions(length)), positions(length))
    unsplit = split.whole(input_ids=ids, use_cache=False).logits[0]
    assert composed.shape == (length, VOCAB)
    assert torch.equal(composed, unsplit)


# ---- families


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


# ---- the attention seam


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


# ---- heads


def test_rows_ask_for_few_logits(tmp_path: Path) -> None:
    split = split_tiny("gemma2", tmp_path)
    with torch.no_grad():
        states = split.trunk(random_ids(LENGTH), positions())
        everything = split.head(states, positions())
        some = split.head(states, positions(), rows=torch.tensor([39, 0, 7]))
        none = split.head(states, positions(), rows=torch.tensor([], dtype=torch.long))
    torch.testing.assert_close(some, everything[[39, 0, 7]], rtol=0, atol=1e-6)
    assert none.shape == (0, VOCAB)


@pytest.mark.parametrize("name", ["llama", "granite", "gpt_neox", "gemma3_text"])
def test_score_head(name: str, tmp_path: Path) -> None:
    """A scalar head reads `score` off the normed state, one scalar per asked row."""
    split = split_tiny(name, tmp_path)
    tensors = family.initial_head(split.checkpoint, split.spec, OutputKind.SCORE)
    assert not tensors["score.weight"].any()
    tensors["score.weight"] = torch.randn(1, split.spec.d_model, generator=torch.Generator().manual_seed(3))
    head = family.build_head(split.spec, tensors, OutputKind.SCORE, None, F32)
    with torch.no_grad():
        states = split.trunk(random_ids(LENGTH), positions())
        scalars = head(states, positions())
        hidden = getattr(split.whole, split.spec.base)(random_ids(LENGTH), use_cache=False).last_hidden_state[0]
        assert torch.equal(scalars, nn.functional.linear(hidden, tensors["score.weight"])[:, 0])
        torch.testing.assert_close(head(states, positions(), rows=torch.tensor([5])), scalars[5:6], rtol=1e-5, atol=1e-5)
    assert set(family.state_of(head)) == set(tensors)


def test_tied_head_shares_the_embedding_and_stores_nothing(tmp_path: Path) -> None:
    """Training a tied head must never move the trunk."""
    split = split_tiny("llama", tmp_path, tie_word_embeddings=True)
    assert split.spec.tied
    assert split.head.decoder.lm_head.weight is split.trunk.embedding
    own = family.trainable_parameters(split.head)
    assert all(parameter is not split.trunk.embedding for parameter in own.values())
    assert set(own) == set(split.spec.head_schema(OutputKind.TIED)) == set(family.state_of(split.head))
    before = split.trunk.embedding.detach().clone()
    for parameter in own.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    with torch.no_grad():
        states = split.trunk(random_ids(LENGTH), positions())
    split.head(states, positions()).logsumexp(-1).sum().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in own.values())
    assert split.trunk.embedding.grad is None
    assert torch.equal(split.trunk.embedding, before)


def test_own_output_for_a_tied_model(tmp_path: Path) -> None:
    split = split_tiny("gemma", tmp_path)
    tensors = family.initial_head(split.checkpoint, split.spec, OutputKind.OWN)
    head = family.build_head(split.spec, tensors, OutputKind.OWN, None, F32)
    assert head.decoder.lm_head.weight is not split.trunk.embedding
    assert_composes(Split(split.whole, split.checkpoint, split.spec, split.trunk, head))


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_of_one_skeleton_share_nothing(name: str, tmp_path: Path) -> None:
    """Two heads from one skeleton, the first one damaged: the second composes bit for bit, and the skeleton has no weights still."""
    split = split_tiny(name, tmp_path)
    output, embedding = (OutputKind.TIED, split.trunk.embedding) if split.spec.tied else (OutputKind.OWN, None)
    tensors, skeleton = family.initial_head(split.checkpoint, split.spec, output), family.head_skeleton(split.spec)
    first = family.build_head(split.spec, tensors, output, embedding, F32, skeleton=skeleton)
    first.decoder.config.num_hidden_layers = 1
    first.to_empty(device="meta")
    head = family.build_head(split.spec, tensors, output, embedding, F32, skeleton=skeleton)
    assert_composes(Split(split.whole, split.checkpoint, split.spec, split.trunk, head))
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_an_untied_model_has_no_tied_heads(tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path)
    with pytest.raises(FailedPrecondition, match="output is not its embedding"):
        split.spec.head_schema(OutputKind.TIED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "lacks 1 tensors, the first is 'model.norm.weight'"),
        (lambda tensors: tensors.update({"model.layers.0.x": torch.zeros(1)}), "not a tensor of a head.*model.layers.0.x"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}),
            r"norm.weight must have shape \(32,\), not \(3,\)",
        ),
    ],
)
def test_wrong_tensors_are_named(change: Callable[[dict[str, torch.Tensor]], object], message: str, tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path)
    tensors = family.initial_head(split.checkpoint, split.spec, OutputKind.OWN)
    change(tensors)
    with pytest.raises(InvalidArgument, match=message):
        family.build_head(split.spec, tensors, OutputKind.OWN, None, F32)


def test_head_names_are_global(tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path, 3)
    layers = {int(name.split(".")[2]) for name in family.state_of(split.head) if ".layers." in name}
    assert layers == {3}
    assert set(family.state_of(split.head)) <= set(split.whole.state_dict())


# ---- memory and threads


def test_nothing_is_left_of_what_a_part_does_not_need(tmp_path: Path) -> None:
    split = split_tiny("llama", tmp_path)
    total = sum(parameter.numel() for parameter in split.whole.parameters())
    parts = [*split.trunk.parameters(), *split.head.parameters()]
    assert sum(parameter.numel() for parameter in parts) == total
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in parts)
    assert not any(buffer.is_meta for part in (split.trunk, split.head) for buffer in part.buffers())


def test_a_skeleton_of_a_big_model_allocates_next_to_nothing() -> None:
    import psutil

    config = tiny_config(
        "llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=4, num_attention_heads=64, vocab_size=128256
    )
    before = psutil.Process().memory_info().rss
    model = skeleton.build_skeleton(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 5e9
    assert psutil.Process().memory_info().rss - before < 100e6


def test_other_threads_make_real_parameters_while_a_skeleton_is_built() -> None:
    """The patch that sends parameters to the meta device is global; it must only act in the thread that builds."""
    stop, devices, are_drawn = threading.Event(), set(), set()

    def make_modules() -> None:
        while not stop.is_set():
            weight = nn.Linear(4, 64).weight
            devices.add(weight.device.type)
            are_drawn.add(bool(0.0 < weight.abs().max() <= 0.5))

    thread = threading.Thread(target=make_modules)
    thread.start()
    for _ in range(5):
        skeleton.build_skeleton(tiny_config("llama"))
    stop.set()
    thread.join()
    assert devices == {"cpu"}
    assert are_drawn == {True}


def test_the_part_does_not_write_to_the_checkpoints_config(tmp_path: Path) -> None:
    save_tiny("qwen3", tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    before = copy.deepcopy(checkpoint.config.to_dict())
    spec = spec_module.describe(checkpoint, 2)
    trunk = family.build_trunk(checkpoint, spec, F32)
    policy_head(checkpoint, spec, trunk)
    assert checkpoint.config.to_dict() == before


# ---- identity


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


# ---- refusals


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
