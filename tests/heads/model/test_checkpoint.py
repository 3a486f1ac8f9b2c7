"""A model folder is read without mapping, unpickling or running anything, and a damaged one is named as such."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from polyhead.heads.model.checkpoint import Checkpoint, Piece, canonical_config, read_header, write_weights
from polyhead.heads.model.split import split
from tests.heads.models import save_tiny, tiny_config


def test_reads_what_was_saved(tmp_path: Path) -> None:
    whole = save_tiny("llama", tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    expected = whole.state_dict()
    assert checkpoint.names == tuple(sorted(expected))
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)
    assert checkpoint.config.num_hidden_layers == 4


def test_shards_read_as_one_file(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "one")
    save_tiny("llama", tmp_path / "many", max_shard_size="20KB")
    one, many = Checkpoint.open(tmp_path / "one"), Checkpoint.open(tmp_path / "many")
    assert len({info.file for info in many.tensors.values()}) > 2
    assert one.names == many.names
    assert all(one.sha256(name) == many.sha256(name) for name in one.names)


def test_a_folder_that_was_saved_twice_reads_the_single_file(tmp_path: Path) -> None:
    """An old index beside model.safetensors used to win, silently, and transformers reads the single file: log-probs were off by 2.9."""
    save_tiny("llama", tmp_path, seed=0, max_shard_size="20KB")
    newer = save_tiny("llama", tmp_path / "second", seed=1).state_dict()
    shutil.move(tmp_path / "second" / "model.safetensors", tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in newer.items())
    assert AutoModelForCausalLM.from_pretrained(tmp_path).state_dict().keys() == newer.keys()


@pytest.mark.parametrize("named", ["weights.safetensors", "weights.safetensors.index.json"])
def test_weights_that_config_names_come_first(named: str, tmp_path: Path) -> None:
    """transformers reads `transformers_weights` before anything else; the name changes no identity, and parts do not keep it."""
    expected = save_tiny("llama", tmp_path, seed=1).state_dict()
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    placed = dict.fromkeys(expected, "weights.safetensors")
    (tmp_path / "weights.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    save_tiny("llama", tmp_path / "other", seed=2)
    shutil.move(tmp_path / "other" / "model.safetensors", tmp_path / "model.safetensors")
    edit_config(tmp_path, transformers_weights=named)
    checkpoint = Checkpoint.open(tmp_path)
    assert {info.file for info in checkpoint.tensors.values()} == {"weights.safetensors"}
    assert torch.equal(checkpoint.read("model.norm.weight"), expected["model.norm.weight"])
    assert "transformers_weights" not in canonical_config(checkpoint.config)
    split(tmp_path, tmp_path / "parts", 2)
    assert Checkpoint.open(tmp_path / "parts" / "trunk").tensors
    assert not list((tmp_path / "parts" / "trunk").glob("*.index.json"))


@pytest.mark.parametrize("named", ["../x.safetensors", "weights.bin", "gone.safetensors"])
def test_weights_that_config_names_wrongly(named: str, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    edit_config(tmp_path, transformers_weights=named)
    with pytest.raises(FailedPrecondition, match=named):
        Checkpoint.open(tmp_path)


def test_shards_of_an_older_save_do_not_matter(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*-of-*.safetensors"))[0]
    shutil.copy(shard, tmp_path / "model-00001-of-00077.safetensors")
    assert Checkpoint.open(tmp_path).tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_dtypes_and_shapes(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"scalar": torch.tensor(1), "empty": torch.zeros(0, 3), "row": torch.arange(5), "cube": torch.ones(2, 3, 4)}
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    checkpoint = save_plain(tmp_path, tensors)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.info(name).shape == tuple(tensor.shape)


def test_sha256_is_of_the_plain_bytes(tmp_path: Path) -> None:
    tensor = torch.randn(700, 700)  # more than one chunk
    checkpoint = save_plain(tmp_path, {"a": tensor})
    assert checkpoint.sha256("a") == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_weights_stay_when_the_file_is_truncated(tmp_path: Path) -> None:
    """from_pretrained leaves tensors mapped: truncating the file kills the process. Ours are in private memory."""
    tensor = torch.randn(1000)
    read = save_plain(tmp_path, {"a": tensor}).read("a")
    os.truncate(tmp_path / "model.safetensors", 0)
    assert torch.equal(read, tensor)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "model.safetensors") not in maps.read_text()  # other tests may hold files of this name


def test_reads_into_given_memory(tmp_path: Path) -> None:
    checkpoint = save_plain(tmp_path, {"a": torch.arange(6.0).view(2, 3)})
    stack = torch.zeros(4, 2, 3)
    checkpoint.read("a", out=stack[2])
    assert torch.equal(stack[2], torch.arange(6.0).view(2, 3))
    assert not stack[[0, 1, 3]].any()
    with pytest.raises(FailedPrecondition, match="cannot read"):
        checkpoint.read("a", out=torch.zeros(3, 2))


def test_written_files_are_read_by_the_library(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 2), "a": torch.randn(5).to(torch.bfloat16), "c": torch.tensor(2.0)}
    write_weights(tmp_path / "x.safetensors", {name: Piece.of(tensor) for name, tensor in tensors.items()})
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


# ---- what is refused


def test_a_truncated_file_is_refused_at_open(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(DataLoss, match="truncated or damaged at tensor"):
        Checkpoint.open(tmp_path)


def test_a_file_that_shrinks_later_is_an_error_not_a_crash(tmp_path: Path) -> None:
    checkpoint = save_plain(tmp_path, {"a": torch.zeros(1000)})
    os.truncate(tmp_path / "model.safetensors", 500)
    with pytest.raises(DataLoss, match="became shorter"):
        checkpoint.read("a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"\x00" * 7, "not a whole safetensors file"),
        (b"\xff" * 8, "not a whole safetensors file"),
        ((20).to_bytes(8, "little") + b"{}", "not a whole safetensors file"),
        ((2).to_bytes(8, "little") + b"{]", "not JSON"),
        ((4).to_bytes(8, "little") + b"null", "not an object"),
    ],
)
def test_damaged_headers(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DataLoss, match=message):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
    ],
)
def test_entries_that_do_not_fit_the_file(entry: dict[str, Any], tmp_path: Path) -> None:
    write_raw(tmp_path / "x.safetensors", {"a": entry}, 8)
    with pytest.raises(DataLoss, match="truncated or damaged at tensor 'a'"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("entry", [{"dtype": "F4"}, {"dtype": "F32", "shape": [2]}, [], None, {"dtype": "F32", "shape": ["x"]}])
def test_entries_that_are_no_tensors(entry: Any, tmp_path: Path) -> None:
    write_raw(tmp_path / "x.safetensors", {"a": entry}, 8)
    with pytest.raises(DataLoss, match="damaged at tensor 'a'"):
        read_header(tmp_path / "x.safetensors")


def test_a_dtype_that_is_not_understood(tmp_path: Path) -> None:
    write_raw(tmp_path / "x.safetensors", {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, 8)
    with pytest.raises(InvalidArgument, match="not understood: 'a'"):
        read_header(tmp_path / "x.safetensors")


def test_pickled_weights_are_never_touched(tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FailedPrecondition, match="only safetensors are read"):
        Checkpoint.open(tmp_path)


def test_remote_code_is_refused(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    edit_config(tmp_path, model_type="someones_model", auto_map={"AutoConfig": "evil.Config"})
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(FailedPrecondition, match=r"auto_map.*never run.*someones_model"):
        Checkpoint.open(tmp_path)


def test_a_known_family_with_auto_map_loads_its_native_class(tmp_path: Path) -> None:
    """Phi-3's own checkpoints carry auto_map beside a native class."""
    save_tiny("llama", tmp_path)
    edit_config(tmp_path, auto_map={"AutoConfig": "evil.Config"})
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    assert type(Checkpoint.open(tmp_path).config).__name__ == "LlamaConfig"


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(DataLoss, match="outside the folder"):
        Checkpoint.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FailedPrecondition, match=shard.name):
        Checkpoint.open(tmp_path)


def test_a_shard_that_the_index_forgets_is_named(tmp_path: Path) -> None:
    """transformers would leave its tensors random, with a warning."""
    save_tiny("llama", tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    plain = json.loads(index.read_text())
    forgotten = sorted(set(plain["weight_map"].values()))[1]
    plain["weight_map"] = {name: file for name, file in plain["weight_map"].items() if file != forgotten}
    index.write_text(json.dumps(plain))
    with pytest.raises(DataLoss, match=f"does not list a shard.*{forgotten}"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "model.bin.safetensors"}}, "'model.bin.safetensors'"),
        ({"weight_map": {"ghost": "part.safetensors"}}, "places a tensor in part.safetensors, which lacks it: 'ghost'"),
        ({"weight_map": []}, "no weight_map"),
        ({}, "no weight_map"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
    ],
)
def test_damaged_indexes(index: Any, message: str, tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "part.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((DataLoss, FailedPrecondition), match=message):
        Checkpoint.open(tmp_path)


def test_an_adapters_folder_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FailedPrecondition, match=r"holds an adapter, not a model.*\nhint: serve the model"):
        Checkpoint.open(tmp_path)


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such model folder: 'nowhere'"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(NotFound, match="no such model folder: 'nowhere'"):
        Checkpoint.open("./nowhere")
    with pytest.raises(NotFound, match=r"no config\.json"):
        Checkpoint.open(tmp_path)


def test_hub_names_are_fetched_as_safe_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    save_tiny("llama", tmp_path)
    asked: dict[str, Any] = {}

    def fake(name: str, **arguments: Any) -> str:
        asked.update(arguments, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    assert Checkpoint.open("someone/llama").names
    assert asked["name"] == "someone/llama"
    patterns = set(asked["allow_patterns"])
    assert not {pattern for pattern in patterns if pattern.endswith((".py", ".bin", ".pt", "*"))} - {"tokenizer*"}


def test_no_network_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fake(name: str, **arguments: Any) -> str:
        raise OSError("no route to /secret/path")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    with pytest.raises(NotFound, match="'someone/llama'") as caught:
        Checkpoint.open("someone/llama")
    assert "secret" not in caught.value.message


def test_canonical_config_keeps_what_counts() -> None:
    kept = canonical_config(tiny_config("llama", rope_theta=77.0))
    assert kept["rope_parameters"]["rope_theta"] == 77.0
    assert kept["hidden_size"] == 32
    assert not {"transformers_version", "dtype", "eos_token_id", "_name_or_path", "architectures"} & kept.keys()
    assert "hidden_act" not in kept  # the family's default


# ---- helpers


def save_plain(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    tiny_config("llama").save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(folder)


def write_raw(path: Path, header: dict[str, Any], num_data_bytes: int) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_data_bytes))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
