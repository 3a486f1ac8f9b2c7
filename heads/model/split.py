"""Writes a model as two parts: a trunk folder, and the model's own upper layers as the first head folder.

    out/trunk/         config.json, tokenizer, model.safetensors (the source's tensors, byte for byte), trunk.json
    out/heads/policy/  head.safetensors, head.json

Knows the two folder formats; what belongs to which part comes from family.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polyhead.heads.format.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound
from polyhead.heads.format.kinds import SCORE_NAME, HeadKind, OutputKind, model_output
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.format.precision import Precision
from polyhead.heads.format.tensorfile import PREFIX_BYTES, TensorData, read_header, write_canonical
from polyhead.heads.model.checkpoint import DTYPES, Checkpoint, as_bytes, write_weights
from polyhead.heads.model.family import initial_head
from polyhead.heads.model.spec import ModelSpec, describe, trunk_id
from polyhead.heads.model.weight_files import INDEX_SUFFIX

__all__ = ["TrunkFacts", "copy_companions", "fresh_folder", "read_head_folder", "split", "write_head_folder"]

TRUNK_FORMAT = 1
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_COMPANIONS = ("*.json", "*.jinja", "*.model", "tokenizer*", "merges.txt", "vocab.txt")  # all that is not weights
_OURS = ("trunk.json", "polyhead.json")


@dataclass(frozen=True, slots=True)
class TrunkFacts:
    """The content of trunk.json."""

    trunk_id: str
    split_layer: int
    num_layers: int
    tensors: Mapping[str, str]  # source tensor -> SHA-256 of its bytes, in hex

    def to_json(self) -> str:
        facts = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({"format": TRUNK_FORMAT, **facts}, sort_keys=True, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> TrunkFacts:
        try:
            plain: dict[str, Any] = json.loads((folder / "trunk.json").read_text(encoding="utf-8"))
            if plain.pop("format") != TRUNK_FORMAT:
                raise FailedPrecondition(f"trunk.json has another format than {TRUNK_FORMAT}\nhint: split the model again")
            return cls(**plain)
        except FileNotFoundError:
            raise NotFound("not a trunk folder, it has no trunk.json\nhint: make one with: polyhead split MODEL OUT") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataLoss("trunk.json is damaged\nhint: split the model again") from None


def split(
    model_folder: str | Path, out_folder: str | Path, split_layer: int | None = None, precision: str = Precision.FLOAT32
) -> TrunkFacts:
    """Split a model folder (or hub name). `precision` is what the trunk will be served at; weights keep the source's dtype.

    A checkpoint with a sequence classifier becomes a preference head, any other a policy head.
    """
    checkpoint = Checkpoint.open(model_folder)
    spec = describe(checkpoint, split_layer)
    facts = TrunkFacts(
        trunk_id=trunk_id(checkpoint, spec),
        split_layer=spec.split_layer,
        num_layers=spec.num_layers,
        tensors={name: checkpoint.sha256(name) for name in spec.trunk_sources},
    )
    manifest = _first_head(checkpoint, spec, facts.trunk_id, Precision.parse(precision, "manifest.precision"))
    manifest.validate()
    with fresh_folder(out_folder) as out:
        _write_trunk(checkpoint, facts, out / "trunk")
        write_head_folder(out / "heads" / manifest.kind.value, initial_head(checkpoint, spec, manifest.output), manifest)
    return facts


def _first_head(checkpoint: Checkpoint, spec: ModelSpec, trunk_id: str, precision: Precision) -> HeadManifest:
    policy = HeadManifest(
        kind=HeadKind.POLICY,
        trunk_id=trunk_id,
        split_layer=spec.split_layer,
        num_layers=spec.num_layers,
        output=model_output(HeadKind.POLICY, tied=spec.tied),
        precision=precision,
    )
    if SCORE_NAME not in checkpoint.tensors or checkpoint.info(SCORE_NAME).shape != (1, spec.d_model):
        return policy
    pad = _class_padding(checkpoint, spec)
    return dataclasses.replace(policy, kind=HeadKind.PREFERENCE, output=OutputKind.SCORE, pad_token_id=pad)


def _class_padding(checkpoint: Checkpoint, spec: ModelSpec) -> int:
    """What the family's ForSequenceClassification passes over to find the token that it reads; -1 for a model of another class."""
    is_classifier = any(name.endswith("ForSequenceClassification") for name in checkpoint.config.architectures or ())
    pad = checkpoint.config.pad_token_id
    return int(pad) if is_classifier and pad is not None and 0 <= pad < spec.vocab_size else -1


def _write_trunk(checkpoint: Checkpoint, facts: TrunkFacts, folder: Path) -> None:
    folder.mkdir(parents=True)
    copy_companions(checkpoint.folder, folder)
    write_weights(folder / "model.safetensors", {name: checkpoint.piece(name) for name in facts.tensors})
    (folder / "trunk.json").write_text(facts.to_json(), encoding="utf-8")


def copy_companions(source: Path, target: Path) -> None:
    """Copy config, tokenizer, chat template and generation config; no weights, no links, nothing of ours."""
    for pattern in _COMPANIONS:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and path.name not in _OURS and not path.name.endswith((".safetensors", INDEX_SUFFIX)):
                shutil.copyfile(path, target / path.name)  # follows the links of a hub cache
    if (source / "additional_chat_templates").is_dir():
        shutil.copytree(source / "additional_chat_templates", target / "additional_chat_templates")
    _forget_weight_names(target / "config.json")


def _forget_weight_names(config: Path) -> None:
    """The weights get their usual name: transformers would look for the one that the source's config.json gives."""
    plain = json.loads(config.read_text(encoding="utf-8"))
    if plain.pop("transformers_weights", None) is not None:
        config.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_head_folder(folder: Path, tensors: Mapping[str, torch.Tensor], manifest: HeadManifest) -> None:
    """Write head.safetensors (canonical: equal weights give equal bytes) and head.json. Names are global, dtypes kept."""
    manifest.validate()
    data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    entries = {
        name: TensorData(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), as_bytes(tensor)) for name, tensor in data.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "head.safetensors").open("wb") as file:
        write_canonical(entries, file)
    (folder / "head.json").write_text(manifest.to_json(), encoding="utf-8")


def read_head_folder(folder: str | Path) -> tuple[HeadManifest, dict[str, torch.Tensor]]:
    """(manifest, tensors by global name) in private memory. Raises NotFound, InvalidArgument or DataLoss."""
    folder = Path(folder)
    try:
        manifest = HeadManifest.from_json((folder / "head.json").read_text(encoding="utf-8"))
        return manifest, _read_tensors(folder / "head.safetensors")
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise NotFound(f"not a head folder, it has no {missing}\nhint: it must hold head.json and head.safetensors") from None


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(0)
        header = read_header(file.read(PREFIX_BYTES + int.from_bytes(start[:PREFIX_BYTES], "little")), size)
        tensors: dict[str, torch.Tensor] = {}
        for name, entry in header.tensors.items():
            tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
            file.seek(entry.start)
            if file.readinto(as_bytes(tensor)) != entry.end - entry.start:
                raise DataLoss(f"head.safetensors became shorter while it was read, at tensor {name!r}")
            tensors[name] = tensor
    return tensors


@contextlib.contextmanager
def fresh_folder(out_folder: str | Path) -> Iterator[Path]:
    """A new folder that appears under its name only when all of it is written. Refuses one that exists and is not empty."""
    out = Path(out_folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlreadyExists(f"the output folder exists and is not empty: {out.name!r}\nhint: name a new one")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
