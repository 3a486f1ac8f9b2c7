"""A pushed folder is read from the files that transformers would read, and what is missing or damaged is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from polyhead.client.errors import DataLoss, FailedPrecondition, InvalidArgument
from polyhead.client.weights.folders import read_folder

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def number_of(folder: Path, name: str) -> float:
    return float(np.frombuffer(read_folder(folder)[name].read(), np.float32)[0])


def save(folder: Path, file: str, **numbers: float) -> None:
    save_file({name: np.array([number], np.float32) for name, number in numbers.items()}, folder / file)


def save_shards(folder: Path, placed: Any = None) -> None:
    save(folder, FIRST, a=1)
    save(folder, SECOND, b=1)
    index = {"weight_map": {"a": FIRST, "b": SECOND} if placed is None else placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_single_file_comes_before_an_old_index(tmp_path: Path) -> None:
    """A folder that was saved twice: the old shards used to be pushed, silently."""
    save_shards(tmp_path)
    assert number_of(tmp_path, "b") == 1
    save(tmp_path, "model.safetensors", a=2, b=2)
    assert number_of(tmp_path, "b") == 2


def test_what_config_names_comes_first(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", a=2)
    save(tmp_path, "mine.safetensors", a=3)
    (tmp_path / "config.json").write_text('{"transformers_weights": "mine.safetensors"}')
    assert number_of(tmp_path, "a") == 3
    (tmp_path / "mine.safetensors").unlink()
    with pytest.raises(FailedPrecondition, match=r"mine\.safetensors\nhint: save or download"):
        read_folder(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """It was a raw FileNotFoundError."""
    save_shards(tmp_path)
    (tmp_path / SECOND).unlink()
    with pytest.raises(FailedPrecondition, match=SECOND):
        read_folder(tmp_path)


def test_a_forgotten_shard_is_named_and_an_older_saves_is_not(tmp_path: Path) -> None:
    save_shards(tmp_path, {"a": FIRST})
    with pytest.raises(DataLoss, match=f"does not list a shard.*{SECOND}"):
        read_folder(tmp_path)
    (tmp_path / SECOND).rename(tmp_path / "model-00002-of-00005.safetensors")
    assert read_folder(tmp_path).keys() == {"a"}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an object"),
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "no weight_map"),
        ('{"weight_map": {"ghost": "part.safetensors"}}', "places a tensor in part.safetensors, which lacks it: 'ghost'"),
    ],
)
def test_damaged_indexes(index: str, message: str, tmp_path: Path) -> None:
    save(tmp_path, "part.safetensors", a=1)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises((DataLoss, InvalidArgument), match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize("entry", [None, {}, {"shape": [2]}, {"shape": 1}, {"shape": ["x"]}])
def test_damaged_headers(entry: Any, tmp_path: Path) -> None:
    if entry:
        entry = {"dtype": "F32", "data_offsets": [0, 4], **entry}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(DataLoss, match="damaged at tensor 'a'"):
        read_folder(tmp_path)
