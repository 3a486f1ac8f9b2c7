"""split and merge are inverse: transformers loads what they write, with equal outputs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from polyhead.heads.format.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.model import family
from polyhead.heads.model import spec as spec_module
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.merge import merge
from polyhead.heads.model.split import TrunkFacts, read_head_folder, split, write_head_folder
from tests.cases import in_turn
from tests.heads.models import FAMILIES, random_ids, save_tiny, tiny_config

IDS = random_ids(40)


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Of weights in memory of their own: from_pretrained leaves them mapped, where alignment changes the last bits."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    output: torch.Tensor = model.eval()(IDS, use_cache=False).logits
    return output


def split_tiny(name: str, folder: Path, **overrides: Any) -> PreTrainedModel:
    """folder/model, folder/split/trunk, folder/split/heads/policy"""
    whole = save_tiny(name, folder / "model", **overrides)
    split(folder / "model", folder / "split", 2)
    return whole


def merge_tiny(folder: Path, head: str = "policy") -> Path:
    merge(folder / "split" / "trunk", folder / "split" / "heads" / head, folder / "merged")
    return folder / "merged"


@pytest.mark.parametrize(("name", "tied"), in_turn(FAMILIES, [False, True]))
def test_merge_of_split_is_the_model(name: str, tied: bool, tmp_path: Path) -> None:
    whole = split_tiny(name, tmp_path, tie_word_embeddings=tied)
    manifest, tensors = read_head_folder(tmp_path / "split" / "heads" / "policy")
    assert manifest.output is (OutputKind.TIED if tied else OutputKind.OWN)
    assert ("lm_head.weight" in tensors) != tied
    merged, info = AutoModelForCausalLM.from_pretrained(merge_tiny(tmp_path), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(merged), logits(whole))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt_neox"])
def test_a_merged_model_has_the_same_trunk(name: str, tmp_path: Path) -> None:
    split_tiny(name, tmp_path)
    merged = Checkpoint.open(merge_tiny(tmp_path))
    assert spec_module.trunk_id(merged, spec_module.describe(merged, 2)) == TrunkFacts.read(tmp_path / "split" / "trunk").trunk_id


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt_neox"])
def test_a_merged_model_splits_into_the_same_head_bytes(name: str, tmp_path: Path) -> None:
    split_tiny(name, tmp_path)
    split(merge_tiny(tmp_path), tmp_path / "again", 2)
    first, second = (tmp_path / part / "heads" / "policy" / "head.safetensors" for part in ("split", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_trained_head_merges(tmp_path: Path) -> None:
    split_tiny("llama", tmp_path, tie_word_embeddings=True)
    folder = tmp_path / "split" / "heads" / "policy"
    manifest, tensors = read_head_folder(folder)
    tensors["model.norm.weight"] *= 2
    tensors["lm_head.weight"] = torch.randn(97, 32)
    write_head_folder(folder, tensors, dataclasses.replace(manifest, output=OutputKind.OWN))
    merged = AutoModelForCausalLM.from_pretrained(merge_tiny(tmp_path))
    assert torch.equal(merged.lm_head.weight, tensors["lm_head.weight"])
    assert not torch.equal(merged.model.embed_tokens.weight, merged.lm_head.weight)
    trunk, head = build(tmp_path, "policy")
    with torch.no_grad():
        assert torch.equal(head(trunk(IDS, torch.arange(40)[None]), torch.arange(40)[None]), logits(merged)[0])


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_moe", "starcoder2"])
def test_a_score_head_merges_into_a_sequence_classifier(name: str, tmp_path: Path) -> None:
    split_tiny(name, tmp_path)
    manifest, tensors = read_head_folder(tmp_path / "split" / "heads" / "policy")
    tensors.pop("lm_head.weight", None)
    tensors["score.weight"] = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    manifest = dataclasses.replace(manifest, kind=HeadKind.PREFERENCE, output=OutputKind.SCORE)
    write_head_folder(tmp_path / "split" / "heads" / "preference", tensors, manifest)
    folder = merge_tiny(tmp_path, "preference")
    merged, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert merged.num_labels == 1
    trunk, head = build(tmp_path, "preference")
    with torch.no_grad():
        ours = head(trunk(IDS, torch.arange(40)[None]), torch.arange(40)[None], rows=torch.tensor([39]))
    torch.testing.assert_close(ours, logits(merged)[0], rtol=1e-6, atol=1e-5)


def test_a_reward_model_splits_into_a_preference_head(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny_config("llama", num_labels=1))
    model.save_pretrained(tmp_path / "model")
    split(tmp_path / "model", tmp_path / "split", 2)
    manifest, tensors = read_head_folder(tmp_path / "split" / "heads" / "preference")
    assert manifest.kind is HeadKind.PREFERENCE
    assert torch.equal(tensors["score.weight"], model.score.weight)
    merged = AutoModelForSequenceClassification.from_pretrained(merge_tiny(tmp_path, "preference"))
    assert torch.equal(logits(merged), logits(model))


@pytest.mark.parametrize(("pad", "kept"), [(2, 2), (None, -1)])
def test_a_reward_models_padding_goes_along(pad: int | None, kept: int, tmp_path: Path) -> None:
    """It decides where the class reads its score."""
    model = AutoModelForSequenceClassification.from_config(tiny_config("llama", num_labels=1))
    model.config.pad_token_id = pad
    model.save_pretrained(tmp_path / "model")
    split(tmp_path / "model", tmp_path / "split", 2)
    manifest, tensors = read_head_folder(tmp_path / "split" / "heads" / "preference")
    assert manifest.pad_token_id == kept
    write_head_folder(tmp_path / "split" / "heads" / "preference", tensors, dataclasses.replace(manifest, pad_token_id=7))
    merged = AutoModelForSequenceClassification.from_pretrained(merge_tiny(tmp_path, "preference"))
    assert merged.config.pad_token_id == 7


def test_families_without_a_classifier_say_so(tmp_path: Path) -> None:
    split_tiny("granite", tmp_path)
    manifest, tensors = read_head_folder(tmp_path / "split" / "heads" / "policy")
    tensors["score.weight"] = torch.zeros(1, 32)
    manifest = dataclasses.replace(manifest, kind=HeadKind.VALUE, output=OutputKind.SCORE)
    write_head_folder(tmp_path / "split" / "heads" / "value", tensors, manifest)
    with pytest.raises(FailedPrecondition, match="no sequence classifier"):
        merge_tiny(tmp_path, "value")


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "source").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    split(tmp_path / "model", tmp_path / "split", 2, precision="bfloat16")
    manifest, tensors = read_head_folder(tmp_path / "split" / "heads" / "policy")
    assert manifest.precision == "bfloat16"
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    merged = AutoModelForCausalLM.from_pretrained(merge_tiny(tmp_path), dtype="auto")
    assert merged.dtype == torch.bfloat16
    assert torch.equal(logits(merged), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")))


def test_a_float32_head_on_a_bfloat16_trunk_is_not_rounded(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "source").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    split(tmp_path / "model", tmp_path / "split", 2)
    folder = tmp_path / "split" / "heads" / "policy"
    manifest, tensors = read_head_folder(folder)
    tensors = {name: tensor.float() + 1e-5 for name, tensor in tensors.items()}
    write_head_folder(folder, tensors, manifest)
    merged = AutoModelForCausalLM.from_pretrained(merge_tiny(tmp_path), dtype="auto")
    assert merged.dtype == torch.float32
    assert torch.equal(merged.lm_head.weight, tensors["lm_head.weight"])


# ---- the folders


def test_the_trunk_folder(tmp_path: Path) -> None:
    whole = split_tiny("llama", tmp_path)
    trunk = tmp_path / "split" / "trunk"
    facts = TrunkFacts.read(trunk)
    weights = load_file(trunk / "model.safetensors")
    assert weights.keys() == facts.tensors.keys()
    assert not any(name.startswith(("model.layers.2.", "model.layers.3.", "model.norm", "lm_head")) for name in weights)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in weights.items())
    assert (facts.split_layer, facts.num_layers) == (2, 4)
    assert {"config.json", "generation_config.json"} <= {path.name for path in trunk.iterdir()}


def test_a_trunk_folder_opens_as_a_checkpoint(tmp_path: Path) -> None:
    split_tiny("llama", tmp_path)
    checkpoint = Checkpoint.open(tmp_path / "split" / "trunk")
    spec = spec_module.describe(checkpoint, 2)
    assert spec_module.trunk_id(checkpoint, spec) == TrunkFacts.read(tmp_path / "split" / "trunk").trunk_id
    family.build_trunk(checkpoint, spec, torch.float32)
    with pytest.raises(FailedPrecondition, match="no tensor for this part of the model"):
        family.initial_head(checkpoint, spec, OutputKind.OWN)


def test_companions_are_copied_and_nothing_else(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    wanted = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name in (*wanted, "evil.py", "pytorch_model.bin", "polyhead.json"):
        (tmp_path / "model" / name).write_text("{}")
    split(tmp_path / "model", tmp_path / "split", 2)
    names = {path.name for path in (tmp_path / "split" / "trunk").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "trunk.json", *wanted}
    assert "trunk.json" not in {path.name for path in merge_tiny(tmp_path).iterdir()}


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    split_tiny("llama", tmp_path)
    manifest, tensors = read_head_folder(tmp_path / "split" / "heads" / "policy")
    write_head_folder(tmp_path / "a", tensors, manifest)
    write_head_folder(tmp_path / "b", dict(reversed(tensors.items())), manifest)
    files = [tmp_path / part / "head.safetensors" for part in ("split/heads/policy", "a", "b")]
    assert len({path.read_bytes() for path in files}) == 1


def test_default_split_layer(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model", num_hidden_layers=10)
    assert split(tmp_path / "model", tmp_path / "split").split_layer == 8


def test_an_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    split_tiny("llama", tmp_path)
    with pytest.raises(AlreadyExists, match="'split'"):
        split(tmp_path / "model", tmp_path / "split", 2)


def test_a_failed_split_leaves_nothing(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    with pytest.raises(InvalidArgument):
        split(tmp_path / "model", tmp_path / "out", 2, precision="float8")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataLoss):
        split(tmp_path / "model", tmp_path / "out", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---- merge refuses


def test_another_trunk_is_refused(tmp_path: Path) -> None:
    split_tiny("llama", tmp_path)
    save_tiny("llama", tmp_path / "other_model", seed=1)
    split(tmp_path / "other_model", tmp_path / "other", 2)
    with pytest.raises(FailedPrecondition, match="belongs to another trunk"):
        merge(tmp_path / "other" / "trunk", tmp_path / "split" / "heads" / "policy", tmp_path / "out")
    with pytest.raises(FailedPrecondition, match="belongs to another trunk"):
        merge(tmp_path / "other_model", tmp_path / "split" / "heads" / "policy", tmp_path / "out")


def test_the_whole_source_model_serves_as_trunk(tmp_path: Path) -> None:
    whole = split_tiny("gemma", tmp_path)
    merge(tmp_path / "model", tmp_path / "split" / "heads" / "policy", tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(whole))


def test_another_split_layer_is_refused(tmp_path: Path) -> None:
    split_tiny("llama", tmp_path)
    split(tmp_path / "model", tmp_path / "deeper", 3)
    with pytest.raises(FailedPrecondition, match="starts at layer 3, the trunk ends at layer 2"):
        merge(tmp_path / "split" / "trunk", tmp_path / "deeper" / "heads" / "policy", tmp_path / "out")


def test_a_changed_trunk_is_refused(tmp_path: Path) -> None:
    split_tiny("llama", tmp_path)
    path = tmp_path / "split" / "trunk" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(DataLoss, match="not the one that was split"):
        merge_tiny(tmp_path)


def test_wrong_heads_are_refused(tmp_path: Path) -> None:
    split_tiny("llama", tmp_path)
    folder = tmp_path / "split" / "heads" / "policy"
    manifest, tensors = read_head_folder(folder)
    del tensors["model.norm.weight"]
    write_head_folder(folder, tensors, manifest)
    with pytest.raises(InvalidArgument, match=r"model\.norm\.weight"):
        merge_tiny(tmp_path)
    (folder / "head.json").unlink()
    with pytest.raises(NotFound, match=r"head\.json"):
        merge_tiny(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "x": 2}'])
def test_a_damaged_trunk_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "trunk.json").write_text(text)
    with pytest.raises(DataLoss, match=r"trunk\.json is damaged"):
        TrunkFacts.read(tmp_path)


def test_a_trunk_json_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "trunk.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(FailedPrecondition, match="another format"):
        TrunkFacts.read(tmp_path)


def build(folder: Path, head: str) -> tuple[family.TrunkModule, family.HeadModule]:
    checkpoint = Checkpoint.open(folder / "split" / "trunk")
    spec = spec_module.describe(checkpoint, 2)
    trunk = family.build_trunk(checkpoint, spec, torch.float32)
    manifest, tensors = read_head_folder(folder / "split" / "heads" / head)
    return trunk, family.build_head(spec, tensors, manifest.output, trunk.embedding, torch.float32)
