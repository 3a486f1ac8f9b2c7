"""What a LoRA head's manifest and file may say, and the digest that names what it computes. No model, no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.lora import LoraAdapter, adapted_digest, check_adapter
from polyhead.heads.format.manifest import HeadManifest
from tests.heads.store.store_support import manifest

Q, V = "model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.v_proj"
LINEARS = {Q: (8, 6), V: (4, 6)}
TRUNK = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")
GOOD = {f"{Q}.lora_A.weight": (2, 6), f"{Q}.lora_B.weight": (8, 2)}


def test_scaling_by_hand() -> None:
    plain = LoraAdapter(rank=4, alpha=6.0, rank_pattern={Q: 9}, alpha_pattern={V: 5.0})
    assert plain.scaling_of("other") == 6.0 / 4
    assert plain.scaling_of(Q) == 6.0 / 9
    assert plain.scaling_of(V) == 5.0 / 4
    assert dataclasses.replace(plain, use_rslora=True).scaling_of(Q) == 6.0 / 3
    assert dataclasses.replace(plain, use_rslora=True).scaling_of("other") == 6.0 / math.sqrt(4)


def test_manifest_round_trip() -> None:
    lora = LoraAdapter(rank=4, alpha=6.5, use_rslora=True, rank_pattern={Q: 9}, alpha_pattern={V: 5.0})
    made = manifest(lora=lora, base="policy@3")
    assert HeadManifest.from_json(made.to_json()) == made
    assert "lora" not in json.loads(manifest().to_json()), "a plain head's file is as it was"
    assert hash(made) == hash(HeadManifest.from_json(made.to_json()))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"base": ""}, "manifest.base"),
        ({"base": "policy"}, "manifest.base"),
        ({"lora": LoraAdapter(rank=0, alpha=1.0)}, "manifest.lora.rank"),
        ({"lora": LoraAdapter(rank=1, alpha=math.nan)}, "manifest.lora.alpha"),
        ({"lora": LoraAdapter(rank=1, alpha=1.0, rank_pattern={Q: 0})}, f"manifest.lora.rank_pattern[{Q}]"),
        ({"lora": LoraAdapter(rank=1, alpha=1.0, alpha_pattern={Q: math.inf})}, f"manifest.lora.alpha_pattern[{Q}]"),
        ({"lora": LoraAdapter(rank=1, alpha=1.0, rank_pattern={".*q_proj": 2})}, "manifest.lora.rank_pattern"),
        ({"lora": LoraAdapter(rank=1, alpha=1.0, alpha_pattern={f"m{i}": 2.0 for i in range(4097)})}, "manifest.lora.alpha_pattern"),
    ],
)
def test_a_bad_manifest_names_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        manifest(**{"lora": LoraAdapter(rank=1, alpha=1.0), "base": "policy@3", **change}).validate()
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("plain", "field"),
    [
        ([], "manifest.lora"),
        ({"rank": 1, "alpha": 1, "dropout": 0.1}, "manifest.lora.dropout"),
        ({"alpha": 1}, "manifest.lora.rank"),
        ({"rank": True, "alpha": 1}, "manifest.lora.rank"),
        ({"rank": 1, "alpha": "1"}, "manifest.lora.alpha"),
        ({"rank": 1, "alpha": 1, "use_rslora": 1}, "manifest.lora.use_rslora"),
        ({"rank": 1, "alpha": 1, "rank_pattern": [1]}, "manifest.lora.rank_pattern"),
        ({"rank": 1, "alpha": 1, "rank_pattern": {"q": 1.5}}, "manifest.lora.rank_pattern"),
    ],
)
def test_bad_json_names_the_key(plain: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        LoraAdapter.from_plain(plain)
    assert caught.value.field == field


def test_the_digest_names_weights_base_scaling_and_targets() -> None:
    lora = LoraAdapter(rank=2, alpha=4.0)
    digests = {
        adapted_digest("a" * 64, "b" * 64, lora),
        adapted_digest("c" * 64, "b" * 64, lora),
        adapted_digest("a" * 64, "c" * 64, lora),
        adapted_digest("a" * 64, "b" * 64, LoraAdapter(rank=2, alpha=8.0)),
        adapted_digest("a" * 64, "b" * 64, dataclasses.replace(lora, use_rslora=True)),
        adapted_digest("a" * 64, "b" * 64, dataclasses.replace(lora, alpha_pattern={Q: 8.0})),
    }
    assert len(digests) == 6
    assert adapted_digest("a" * 64, "b" * 64, LoraAdapter(rank=2, alpha=4)) in digests


def test_a_sound_file_passes() -> None:
    check_adapter(GOOD, LoraAdapter(rank=2, alpha=1.0), LINEARS, TRUNK)
    check_adapter(GOOD, LoraAdapter(rank=7, alpha=1.0, rank_pattern={Q: 2}), LINEARS, TRUNK)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": (2, 6)}, "touches the trunk"),
        ({"model.embed_tokens.lora_A.weight": (2, 6)}, "touches the trunk"),
        ({"lm_head.lora_A.weight": (2, 6)}, "not a linear of a head's layers: 'lm_head'"),
        ({"model.layers.3.mlp.experts.lora_A.weight": (2, 6)}, "not a linear of a head's layers"),
        ({f"{Q}.lora_magnitude_vector": (8,)}, "not a matrix of a LoRA adapter"),
        ({f"{Q}.lora_B.bias": (8,)}, "not a matrix of a LoRA adapter"),
        ({"score.weight": (1, 6)}, "not a matrix of a LoRA adapter"),
        ({f"{V}.lora_A.weight": (2, 6)}, f"lacks the other half of a pair: '{V}.lora_B.weight'"),
        ({f"{V}.lora_B.weight": (4, 2)}, f"lacks the other half of a pair: '{V}.lora_A.weight'"),
        ({f"{Q}.lora_A.weight": (3, 6)}, r"lora_A.weight must have shape \[2, 6\]"),
        ({f"{Q}.lora_B.weight": (2, 8)}, r"lora_B.weight must have shape \[8, 2\]"),
    ],
)
def test_a_file_that_does_not_fit_names_the_tensor(shapes: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(FailedPrecondition, match=said):
        check_adapter({**GOOD, **shapes}, LoraAdapter(rank=2, alpha=1.0), LINEARS, TRUNK)


def test_a_pattern_without_a_module_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_adapter(GOOD, LoraAdapter(rank=2, alpha=1.0, alpha_pattern={V: 2.0}), LINEARS, TRUNK)
    assert caught.value.field == "manifest.lora.alpha_pattern"
