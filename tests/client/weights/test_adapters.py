"""PEFT adapters through the client: what is sent, and what is refused, with the tensor or the key, before a byte is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from polyhead.client import Client, LoraAdapter, errors
from polyhead.client.results.records import TrunkInfo
from polyhead.client.weights.adapters import AdapterConfig, sort_adapter
from polyhead.client.weights.tensors import as_source
from polyhead.client.wire.options import PushOptions
from polyhead.v1 import heads_pb2, types_pb2
from tests.client.fake_messages import D_MODEL
from tests.client.fake_server import FakeServer

MODULE = "model.layers.1.mlp.up_proj"  # (8, D_MODEL), the one linear of the fake server's heads
PREFIX = f"base_model.model.{MODULE}"
PAIR = {f"{PREFIX}.lora_A.weight": np.ones((2, D_MODEL), np.float32), f"{PREFIX}.lora_B.weight": np.ones((8, 2), np.float32)}
# what peft 0.21 writes
CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "some/model",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": [1],
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 2,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["up_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def save_adapter(folder: Path, tensors: dict[str, np.ndarray] = PAIR, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "adapter_model.safetensors").write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    return folder


def test_a_folder_is_recognised(client: Client, server: FakeServer, tmp_path: Path) -> None:
    report = client.push("policy", save_adapter(tmp_path / "a"), metrics={"loss": 0.25})
    sent = server.requests["PushHead"][0]
    assert sent.manifest.lora == heads_pb2.LoraAdapter(rank=2, alpha=8.0)
    assert (sent.manifest.kind, sent.manifest.base, sent.manifest.output) == (0, "", 0), "the base decides"
    assert dict(sent.metrics) == {"loss": 0.25}
    assert not server.requests["GetHead"], "nothing has to be asked"
    assert report.used == [f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"]
    assert report.converted == {name: name.removeprefix("base_model.model.") for name in PAIR}
    assert report.head.manifest.lora == LoraAdapter(rank=2, alpha=8.0)
    assert safetensors.numpy.load(server.files["policy@1"]).keys() == set(report.used)


def test_a_mapping_with_its_config(client: Client, server: FakeServer) -> None:
    """What peft.get_peft_model_state_dict or a live model's state_dict gives, and LoraConfig.to_dict()."""
    live = {name.replace(".weight", ".default.weight"): torch.ones(array.shape).bfloat16() for name, array in PAIR.items()}
    config = {**CONFIG, "target_modules": {"up_proj"}}
    client.push_head("pref", live, lora=config, base="policy@3", kind="preference")
    bare = {name.removeprefix("base_model.model."): array for name, array in PAIR.items()}
    client.push_head("pref", bare, lora={"r": 2, "lora_alpha": 3})
    first, second = server.requests["PushHead"]
    assert (first.manifest.base, first.manifest.kind) == ("policy@3", types_pb2.HEAD_KIND_PREFERENCE)
    assert first.manifest.lora.alpha == 8.0
    assert second.manifest.lora == heads_pb2.LoraAdapter(rank=2, alpha=3.0)
    with pytest.raises(errors.FailedPrecondition, match="lora=peft_config"):
        client.push_head("policy", PAIR, kind="policy")


def test_a_pulled_adapter_is_pushed_again(client: Client, server: FakeServer, tmp_path: Path) -> None:
    """head.json says what adapter_config.json said, and what the adapter was built on."""
    source = save_adapter(tmp_path / "a", rank_pattern={".*up_proj": 2}, r=7, alpha_pattern={"up_proj": 3.0})
    client.push_head("policy", source, base="policy@3", kind="policy")
    server.records[0].manifest.trunk_id = "ab" * 32
    client.pull_head("policy@1", tmp_path / "b")
    client.push_head("policy", tmp_path / "b")
    first, again = server.requests["PushHead"]
    assert again.manifest.lora == first.manifest.lora == heads_pb2.LoraAdapter(
        rank=7, alpha=8.0, rank_pattern={MODULE: 2}, alpha_pattern={MODULE: 3.0}
    )
    assert (again.sha256, again.manifest.base, again.manifest.trunk_id) == (first.sha256, "policy@3", "ab" * 32)
    with pytest.raises(errors.InvalidArgument, match="leave lora= out"):
        client.push_head("policy", tmp_path / "b", lora={"r": 2, "lora_alpha": 1})


def test_a_pull_is_checked_with_the_files_hash(client: Client, server: FakeServer, tmp_path: Path) -> None:
    client.push_head("policy", save_adapter(tmp_path / "a"))
    record = server.records[0]
    record.file_sha256, record.digest = record.digest, "cc" * 32
    assert client.pull_head("policy@1")
    record.file_sha256 = "cc" * 32
    with pytest.raises(errors.DataLoss):
        client.pull_head("policy@1")


def test_update_takes_folders_and_options_by_name(client: Client, server: FakeServer, tmp_path: Path) -> None:
    options: dict[str, PushOptions] = {"other": {"lora": {"r": 2, "lora_alpha": 1}, "base": "policy@3", "metrics": {"kl": 2.0}}}
    done = client.update({"policy": save_adapter(tmp_path / "a"), "other": PAIR}, options=options)
    assert dict(done.heads) == {"policy": 1, "other": 1}
    first, second = server.requests["PushHead"]
    assert (first.manifest.lora.alpha, second.manifest.lora.alpha) == (8.0, 1.0)
    assert (dict(second.metrics), second.manifest.base) == ({"kl": 2.0}, "policy@3")
    with pytest.raises(errors.InvalidArgument, match="'nobody'"):
        client.update({"policy": PAIR}, options={"nobody": {}})
    with pytest.raises(errors.InvalidArgument, match="'validate_only'"):
        client.update({"policy": PAIR}, options={"policy": {"validate_only": True}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora = True: DoRA"),
        ({"bias": "lora_only"}, "bias = lora_only"),
        ({"modules_to_save": ["score"]}, "modules_to_save = \\['score'\\]"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"peft_type": "LOHA"}, "peft_type = LOHA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = pissa_niter_4: this initialisation changes the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"something_of_next_year": 3}, "something_of_next_year = 3: not supported"),
        ({"r": None}, "for r: None"),
        ({"r": 0}, "for r: 0"),
        ({"lora_alpha": "8"}, "for lora_alpha"),
        ({"rank_pattern": {"up_proj": 0}}, "for rank_pattern"),
        ({"r": 3}, r"must have shape \(3, 4\), not \(2, 4\)"),
        ({"rank_pattern": {"up_proj": 3}}, r"must have shape \(3, 4\), not \(2, 4\)"),
        ({"target_modules": ["down_proj"]}, f"does not target a module that the file adapts: '{PREFIX}.lora_A.weight'"),
        ({"target_modules": ".*down_proj"}, "does not target"),
        ({"exclude_modules": ["up_proj"]}, "does not target"),
        ({"layers_to_transform": [0]}, "does not target"),
        ({"layers_to_transform": [1, 2]}, "lists a layer that the file does not adapt: 2"),
    ],
)
def test_a_config_that_cannot_be_honoured_names_the_key(
    client: Client, server: FakeServer, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises((errors.FailedPrecondition, errors.InvalidArgument), match=said):
        client.push_head("policy", save_adapter(tmp_path / "a", **changes))
    assert not server.requests["PushHead"]


@pytest.mark.parametrize(
    ("changes"),
    [
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "gaussian"},
        {"target_modules": "all-linear", "layers_to_transform": None},
        {"target_modules": r"model\.layers\.1\..*", "layers_to_transform": [0]},  # PEFT reads the list for lists of names only
        {"target_modules": [MODULE], "layers_to_transform": None},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"something_of_next_year": None},
    ],
)
def test_what_changes_no_number_passes(client: Client, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert client.push_head("policy", save_adapter(tmp_path / "a", **changes)) == 1


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": (2, D_MODEL)}, r"touches the trunk.*layers.0.*\n.*range\(1, 2\)"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": (2, 6)}, "embed_tokens.*\n.*embedding"),
        ({"base_model.model.lm_head.lora_A.weight": (2, D_MODEL)}, "no linear layer.*lm_head"),
        ({"base_model.model.model.norm.lora_A.weight": (2, D_MODEL)}, "no linear layer.*norm"),
        ({f"{PREFIX}.lora_magnitude_vector": (8,)}, "lora_magnitude_vector.*\n.*DoRA"),
        ({f"{PREFIX}.lora_B.bias": (8,)}, "lora_B.bias.*\n.*bias"),
        ({f"{PREFIX}.base_layer.weight": (8, D_MODEL)}, "base_layer.*\n.*get_peft_model_state_dict"),
        ({"base_model.model.score.weight": (1, D_MODEL)}, "score.weight"),
        ({f"{PREFIX}.lora_A.other.weight": (2, D_MODEL)}, "two of the weights have the name"),
    ],
)
def test_a_tensor_that_cannot_be_served_is_named(
    client: Client, server: FakeServer, tmp_path: Path, tensors: dict[str, tuple[int, ...]], said: str
) -> None:
    extra = {name: np.ones(shape, np.float32) for name, shape in tensors.items()}
    config = {"layers_to_transform": None, "target_modules": "all-linear"}
    with pytest.raises((errors.FailedPrecondition, errors.InvalidArgument), match=said):
        client.push_head("policy", save_adapter(tmp_path / "a", {**PAIR, **extra}, **config))
    assert not server.requests["PushHead"]


def test_other_refusals(client: Client, server: FakeServer, tmp_path: Path) -> None:
    half = {name: array for name, array in PAIR.items() if "lora_A" in name}
    with pytest.raises(errors.FailedPrecondition, match=r"lacks the other half of a pair.*lora_B"):
        client.push_head("policy", save_adapter(tmp_path / "a", half))
    wide = {name: array.astype(np.float64) for name, array in PAIR.items()}
    with pytest.raises(errors.FailedPrecondition, match="float64"):
        client.push_head("policy", wide, lora=CONFIG)
    folder = save_adapter(tmp_path / "b")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(errors.FailedPrecondition, match="never pickle"):
        client.push_head("policy", folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(errors.InvalidArgument, match="not JSON"):
        client.push_head("policy", folder)
    for metrics in ({"loss": "low"}, [1.0]):
        with pytest.raises(errors.InvalidArgument, match="metrics must map"):
            client.push_head("policy", PAIR, lora=CONFIG, metrics=metrics)  # type: ignore[arg-type]
    assert not server.requests["PushHead"]


def test_patterns_as_peft_reads_them() -> None:
    """A regular expression for the end of the name; the first that matches counts."""
    ranks, alphas = {"layers.1.*q_proj": 4, "q_proj": 8, "proj": 9}, {"^model.layers.3.self_attn.q_proj": 1}
    config = AdapterConfig.of({**CONFIG, "rank_pattern": ranks, "alpha_pattern": alphas})
    attention = "model.layers.{}.self_attn.{}"
    assert config.rank_of(attention.format(1, "q_proj")) == 4
    assert config.rank_of(attention.format(2, "q_proj")) == 8
    assert config.rank_of(attention.format(2, "v_proj")) == 2
    assert config.alpha_of(attention.format(3, "q_proj")) == 1.0
    assert config.alpha_of(attention.format(13, "q_proj")) == 8.0


def test_an_incomplete_file_is_refused(client: Client) -> None:
    """The config names two modules of a layer, the file holds one: PEFT would take zeros for the other without a word."""
    trunk: TrunkInfo = client.trunk()
    trunk.head_tensors["model.layers.1.mlp.gate_proj.weight"] = (8, D_MODEL)
    given = {name: as_source(name, array) for name, array in PAIR.items()}
    config = AdapterConfig.of({**CONFIG, "target_modules": ["up_proj", "gate_proj"]})
    with pytest.raises(errors.FailedPrecondition, match=r"does not adapt: 'model.layers.1.mlp.gate_proj'"):
        sort_adapter(given, config, trunk)
