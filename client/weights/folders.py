"""Folders on disk as named tensors: a head's, a model's as save_pretrained writes it, an adapter's. Only headers are read at once.

A model's weights are in the very files that transformers reads, in its order: what config.json names (`transformers_weights`),
model.safetensors, the shards of model.safetensors.index.json. A folder that was saved twice may hold an old index beside a single file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyhead.client.errors import DataLoss, FailedPrecondition, InvalidArgument, as_client_errors
from polyhead.client.weights.tensors import Source
from polyhead.heads.format.precision import FILE_DTYPES
from polyhead.heads.format.safetensors_file import PlacedTensor, place_tensors

__all__ = ["ADAPTER_CONFIG", "read_folder", "read_header", "read_json"]

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # what PEFT writes
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-\d+-(?P<of>of-\d+)\.safetensors")
_SAVE_AGAIN = "hint: save or download the folder again"
_NO_PICKLE = "hint: save with save_pretrained (safetensors; never pickle)"


def read_folder(folder: Path) -> dict[str, Source]:
    """Tensors of a head folder, of a model's or of an adapter's. FailedPrecondition or DataLoss names the file at fault."""
    if (folder / "head.safetensors").is_file():
        return read_header(folder / "head.safetensors")
    if (folder / ADAPTER_CONFIG).is_file():
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise FailedPrecondition(f"the adapter folder has no {ADAPTER_WEIGHTS}: {folder}\n{_NO_PICKLE}")
        return read_header(folder / ADAPTER_WEIGHTS)
    return _read_model(folder)


def _read_model(folder: Path) -> dict[str, Source]:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    name = str(config.get("transformers_weights") or (_SINGLE if (folder / _SINGLE).is_file() else _INDEX))
    if name.endswith(".index.json") and (folder / name).is_file():
        return _read_shards(folder, name)
    if Path(name).name != name:
        raise FailedPrecondition(f"config.json names weights outside the folder: {name!r}")
    if (folder / name).is_file():
        return read_header(folder / name)
    if name not in (_SINGLE, _INDEX):
        raise FailedPrecondition(f"a weight file that config.json names is missing: {folder / name}\n{_SAVE_AGAIN}")
    if (folder / ADAPTER_WEIGHTS).is_file():
        raise FailedPrecondition(f"the folder holds an adapter without its {ADAPTER_CONFIG}: {folder}")
    raise FailedPrecondition(f"no head.safetensors and no {_SINGLE} in the folder: {folder}\n{_NO_PICKLE}")


def _read_shards(folder: Path, index: str) -> dict[str, Source]:
    placed = read_json(folder / index).get("weight_map")
    if not isinstance(placed, dict) or not placed or any(Path(str(file)).name != file for file in placed.values()):
        raise DataLoss(f"the index has no weight_map of tensors to files of the folder: {folder / index}\n{_SAVE_AGAIN}")
    _check_shards(folder, index, placed)
    found: dict[str, Source] = {}
    for file in sorted(set(placed.values())):
        shard = read_header(folder / file)
        if twice := sorted(found.keys() & shard.keys()):
            raise DataLoss(f"two shards hold a tensor of one name: {twice[0]!r}\n{_SAVE_AGAIN}")
        found.update(shard)
    if absent := sorted(placed.keys() - found.keys()):
        raise DataLoss(f"{index} places a tensor in {placed[absent[0]]}, which lacks it: {absent[0]!r}\n{_SAVE_AGAIN}")
    return found


def _check_shards(folder: Path, index: str, placed: Mapping[str, str]) -> None:
    """Every listed shard is there, and every shard of the same save (`-of-00003`) is listed."""
    listed = set(placed.values())
    if missing := sorted(file for file in listed if not (folder / file).is_file()):
        raise FailedPrecondition(f"a weight file that {index} names is missing: {folder / missing[0]}\n{_SAVE_AGAIN}")
    saves = {match.group("stem", "of") for file in listed if (match := _SHARD.fullmatch(file))}
    for path in sorted(folder.glob("*.safetensors")):
        match = _SHARD.fullmatch(path.name)
        if match and path.name not in listed and match.group("stem", "of") in saves:
            raise DataLoss(f"{index} does not list a shard that lies beside the others: {path.name!r}\n{_SAVE_AGAIN}")


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object; else InvalidArgument names it."""
    try:
        plain = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise InvalidArgument(f"{file.name} is not JSON: {file}", field="weights") from None
    if not isinstance(plain, dict):
        raise InvalidArgument(f"{file.name} is not an object: {file}", field="weights")
    return plain


def read_header(file: Path) -> dict[str, Source]:
    """Where each tensor of a safetensors file lies. Raises DataLoss if the file is not whole."""
    with as_client_errors():
        return {name: _from_file(file, placed) for name, placed in place_tensors(file).items()}


def _from_file(file: Path, placed: PlacedTensor) -> Source:
    def read() -> memoryview:
        with file.open("rb") as opened:
            opened.seek(placed.start)
            data = opened.read(placed.num_bytes)
        if len(data) != placed.num_bytes:
            raise DataLoss(f"the file became shorter while it was read: {file.name}")
        return memoryview(data)

    return Source(FILE_DTYPES.get(placed.dtype, placed.dtype), placed.shape, read)
