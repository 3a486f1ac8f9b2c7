"""Which files of a model folder hold its weights: the very ones that transformers reads, in its order. Opens no weights.

1. what config.json names (`transformers_weights`), 2. model.safetensors, 3. the shards of model.safetensors.index.json.
A folder that was saved twice holds both 2 and 3: the index beside a single file is an old one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, NotFound

__all__ = ["INDEX_SUFFIX", "WeightFiles", "find_weight_files", "read_json"]

SINGLE, INDEX_SUFFIX = "model.safetensors", ".safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-\d+-(?P<of>of-\d+)\.safetensors")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Names inside the folder, and what an index says that they hold."""

    files: tuple[str, ...]
    index: str = ""  # the index's own name; empty without one
    placed: Mapping[str, str] = field(default_factory=dict)  # tensor -> file, as the index says

    def check_tensors(self, found: Collection[str]) -> None:
        """DataLoss if the index promises a tensor that none of its files holds."""
        if absent := sorted(self.placed.keys() - set(found)):
            raise DataLoss(
                f"{self.index} places a tensor in {self.placed[absent[0]]}, which lacks it: {absent[0][:120]!r}\n"
                "hint: index and shards are of different saves; save or download the folder again"
            )


def find_weight_files(folder: Path, config: Mapping[str, Any]) -> WeightFiles:
    """`config`: the content of config.json. FailedPrecondition names a file that is missing, DataLoss an index that is damaged."""
    named = config.get("transformers_weights")
    if named is not None:
        return _named(folder, str(named))
    if (folder / SINGLE).is_file():
        return WeightFiles((SINGLE,))
    if (folder / f"model{INDEX_SUFFIX}").is_file():
        return _indexed(folder, f"model{INDEX_SUFFIX}")
    files = tuple(sorted(path.name for path in folder.glob("*.safetensors")))
    if not files:
        raise _missing(SINGLE)
    return WeightFiles(files)


def _named(folder: Path, name: str) -> WeightFiles:
    if Path(name).name != name or not name.endswith((".safetensors", INDEX_SUFFIX)):
        raise FailedPrecondition(f"config.json names weights that are no safetensors file of this folder: {name[:120]!r}")
    if not (folder / name).is_file():
        raise _missing(name)
    return _indexed(folder, name) if name.endswith(INDEX_SUFFIX) else WeightFiles((name,))


def _indexed(folder: Path, index: str) -> WeightFiles:
    placed = read_json(folder / index, "").get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise DataLoss(f"{index} has no weight_map of tensors to files\nhint: save or download the folder again")
    files = tuple(sorted(set(placed.values())))
    if any(Path(file).name != file for file in files):
        raise DataLoss(f"{index} names a file outside the folder")
    for file in files:
        if not (folder / file).is_file():
            raise _missing(file)
    if forgotten := _forgotten(folder, files):
        raise DataLoss(
            f"{index} does not list a shard that lies beside the others: {forgotten!r}\n"
            "hint: save or download the folder again; transformers would leave its tensors random"
        )
    return WeightFiles(files, index, placed)


def _forgotten(folder: Path, files: Collection[str]) -> str:
    """A shard of the same save as the listed ones (`-of-00003`); those of an older save with another count do not matter."""
    saves = {match.group("stem", "of") for file in files if (match := _SHARD.fullmatch(file))}
    beside = (path.name for path in folder.glob("*.safetensors") if path.name not in files)
    same_save = (name for name in beside if (match := _SHARD.fullmatch(name)) and match.group("stem", "of") in saves)
    return min(same_save, default="")


def _missing(file: str) -> FailedPrecondition:
    again, convert = "save or download the folder again", "only safetensors are read; convert other formats with save_pretrained"
    return FailedPrecondition(f"a weight file is missing: {file[:120]!r}\nhint: {again if _SHARD.fullmatch(file) else convert}")


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """A file that holds one JSON object. NotFound with `hint` if there is none; DataLoss if it is something else."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"no {path.name} in the folder {path.parent.name!r}\nhint: {hint}") from None
    except OSError as error:
        raise FailedPrecondition(f"cannot read {path.name}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DataLoss(f"{path.name} is not JSON\nhint: save or download the folder again") from None
    if not isinstance(plain, dict):
        raise DataLoss(f"{path.name} is not an object\nhint: save or download the folder again")
    return plain
