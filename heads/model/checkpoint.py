"""A Hugging Face folder as named tensors: config, an index of safetensors files, bytes read into private memory, and hashes.

Nothing is mapped: a mapped file that is truncated later kills the process. Nothing is unpickled and no remote code runs.
Knows nothing of modules, of where a model is cut, or of heads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from transformers import AutoConfig

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from polyhead.heads.format.safetensors_file import place_tensors
from polyhead.heads.model.weight_files import find_weight_files, read_json

__all__ = ["Checkpoint", "Piece", "TensorInfo", "canonical_config", "file_chunks", "resolve_folder", "trunk_digest", "write_weights"]

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_READ_BYTES = 1 << 20
_ALIGNMENT = 64  # of the first tensor in files we write: kernels on a mapped, unaligned weight give other last bits
_HUB_IGNORED = ["consolidated*", "*/*.safetensors"]  # second copies of the weights in other layouts
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt"]
# Keys of a config that change no number of a forward pass, or that transformers writes by itself.
_VOLATILE = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "_attn_implementation_autoset",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "architectures",
        "auto_map",
        "attn_implementation",
        "experts_implementation",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "use_cache",
        "id2label",
        "label2id",
        "problem_type",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "chunk_size_feed_forward",
        "initializer_range",
        "attention_dropout",
        "hidden_dropout",
        "classifier_dropout",
        "embd_pdrop",
        "resid_pdrop",
        "embedding_dropout",
        "residual_dropout",
        "output_router_logits",
        "router_aux_loss_coef",
        "pretraining_tp",
        "quantization_config",
        "transformers_weights",
        "base_model_tp_plan",
        "base_model_pp_plan",
    }
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor's bytes lie."""

    file: str  # name inside the folder
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # first byte, from the start of the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor to write, its bytes produced when their turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[memoryview]]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Piece:
        """Its own memory where it is contiguous and on the CPU; a copy otherwise, made when its turn comes."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: (as_bytes(tensor.detach().cpu().contiguous()),))


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, opened: no weights in memory until `read`."""

    folder: Path
    config: Any  # the family's PretrainedConfig; treat as read-only
    tensors: Mapping[str, TensorInfo]
    _sha256: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, model: str | Path) -> Checkpoint:
        """Read the config and the headers of a local folder, or of a hub name where there is a network.

        Raises NotFound, FailedPrecondition (a format or a model that we do not read) or DataLoss (a damaged file).
        """
        folder = resolve_folder(model)
        plain = _read_plain_config(folder)
        return cls(folder=folder, config=_read_config(folder, plain), tensors=_index(folder, plain))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self.tensors))

    def info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise NotFound(f"the checkpoint has no tensor of this name: {name!r}") from None

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor in memory of its own (in `out`, a contiguous CPU tensor of the same dtype and shape, where given)."""
        info = self.info(name)
        tensor = torch.empty(info.shape, dtype=info.dtype) if out is None else out
        if (tensor.dtype, tuple(tensor.shape)) != (info.dtype, info.shape) or not tensor.is_contiguous():
            raise FailedPrecondition(f"{name}: cannot read {info.dtype} {info.shape} into {tensor.dtype} {tuple(tensor.shape)}")
        if info.num_bytes:
            buffer = as_bytes(tensor)
            with (self.folder / info.file).open("rb", buffering=0) as file:
                file.seek(info.start)
                _read_exactly(file, buffer, name)
        return tensor

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the tensor's first dimension, in memory of their own: nothing else of it is read."""
        info = self.tensors[name]
        rows = torch.empty((stop - start, *info.shape[1:]), dtype=info.dtype)
        if rows.numel():
            with (self.folder / info.file).open("rb", buffering=0) as file:
                file.seek(info.start + start * (info.num_bytes // info.shape[0]))
                _read_exactly(file, as_bytes(rows), name)
        return rows

    def sha256(self, name: str) -> str:
        """SHA-256 of the tensor's bytes as stored (little endian, row-major), in hex; computed once."""
        if name not in self._sha256:
            digest = hashlib.sha256()
            for chunk in self.chunks(name):
                digest.update(chunk)
            self._sha256[name] = digest.hexdigest()
        return self._sha256[name]

    def piece(self, name: str) -> Piece:
        """The tensor as something to write, read while it is written."""
        return Piece(self.info(name).dtype, self.info(name).shape, lambda: self.chunks(name))

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The tensor's bytes as stored, at most 1 MiB at a time; each chunk is valid until the next one is asked for."""
        info, buffer = self.info(name), memoryview(bytearray(_READ_BYTES))
        with (self.folder / info.file).open("rb", buffering=0) as file:
            file.seek(info.start)
            for offset in range(0, info.num_bytes, _READ_BYTES):
                chunk = buffer[: min(_READ_BYTES, info.num_bytes - offset)]
                _read_exactly(file, chunk, name)
                yield chunk


def trunk_digest(checkpoint: Checkpoint, split_layer: int, sources: Mapping[str, Sequence[str]]) -> str:
    """64 hex digits: SHA-256 over the hashes of the trunk's source tensors, the config and the split layer.

    `sources`: global name -> the checkpoint's tensors that make it up. The checkpoint's own names do not count: a model saved
    without the prefix `model.` is the same trunk. `spec.trunk_id` calls it.
    """
    facts = {
        "config": canonical_config(checkpoint.config),
        "split_layer": split_layer,
        "tensors": {name: [_tensor_facts(checkpoint, source) for source in sources[name]] for name in sorted(sources)},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _tensor_facts(checkpoint: Checkpoint, name: str) -> list[Any]:
    info = checkpoint.info(name)
    return [_DTYPE_NAMES[info.dtype], list(info.shape), checkpoint.sha256(name)]


def canonical_config(config: Any) -> dict[str, Any]:
    """The part of a config that decides numbers: values that differ from the family's defaults, without volatile keys.

    Leaving defaults out keeps the identity when another transformers version knows one more option.
    """
    defaults = _default_config(type(config))
    plain = {
        key: value
        for key, value in config.to_dict().items()
        if key not in _VOLATILE and not key.startswith("_") and (key not in defaults or value != defaults[key])
    }
    return {**plain, "model_type": config.model_type, "num_hidden_layers": config.num_hidden_layers}


def _default_config(kind: Any) -> dict[str, Any]:
    logger = logging.getLogger("transformers.configuration_utils")
    logger.addFilter(_nothing)  # some families' own defaults make transformers warn
    try:
        return cast(dict[str, Any], kind().to_dict())
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor: little endian, row-major."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # an array is a buffer


def write_weights(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Write one safetensors file, holding one tensor at a time."""
    with path.open("wb") as file:
        file.writelines(file_chunks(pieces, {"format": "pt"}))  # without it older transformers refuse the file


def file_chunks(pieces: Mapping[str, Piece], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file as the library would write it (wide items first, then by name), a tensor at a time."""
    names = sorted(pieces, key=lambda name: (-pieces[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        piece = pieces[name]
        end = offset + math.prod(piece.shape) * piece.dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[piece.dtype], "shape": list(piece.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield from pieces[name].chunks()


def resolve_folder(model: str | Path) -> Path:
    """A local folder as it is; what looks like a hub name is downloaded (safetensors, json and tokenizer files only)."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(model, Path) or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise NotFound(f"no such model folder: {folder.name!r}\nhint: it must hold config.json and *.safetensors")
    return _download(model)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORED))
    except Exception as error:  # the hub's client raises many kinds; none of their texts is ours to repeat
        raise NotFound(
            f"neither a local folder nor a model that the hub answers for ({type(error).__name__}): {name!r}\n"
            "hint: without a network, give the path of a downloaded folder"
        ) from None


def _read_plain_config(folder: Path) -> dict[str, Any]:
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise FailedPrecondition(
            f"the folder holds an adapter, not a model: {folder.name!r}\n"
            "hint: serve the model that it was trained on, then: polyhead heads push policy FOLDER"
        )
    return read_json(folder / "config.json", "a model folder needs config.json")


def _read_config(folder: Path, plain: Mapping[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises ValueError, KeyError, StrictDataclassError... all meaning: unusable
        if "auto_map" in plain:
            raise FailedPrecondition(
                f"the model needs its own Python code (auto_map), which is never run: model_type {plain.get('model_type')!r}\n"
                "hint: use a checkpoint of a family that transformers carries"
            ) from None
        raise FailedPrecondition(
            f"transformers cannot read config.json ({type(error).__name__}): model_type {str(plain.get('model_type'))[:80]!r}"
        ) from error


def _index(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    weights = find_weight_files(folder, config)
    for file in weights.files:
        for name, info in read_header(folder / file).items():
            if name in tensors:
                raise DataLoss(f"two files hold a tensor of one name: {name!r}")
            tensors[name] = info
    weights.check_tensors(tensors)
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """A weight file's tensors. InvalidArgument for a dtype that nothing here can hold."""
    found = {}
    for name, placed in place_tensors(path).items():
        if placed.dtype not in DTYPES:
            raise InvalidArgument(f"{path.name} holds a tensor whose dtype is not understood: {name[:120]!r} ({placed.dtype[:40]})")
        found[name] = TensorInfo(path.name, DTYPES[placed.dtype], placed.shape, placed.start, placed.num_bytes)
    return found


def _read_exactly(file: BinaryIO, buffer: memoryview, name: str) -> None:
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])  # type: ignore[attr-defined]  # a raw file has it
        if not count:
            raise DataLoss(f"the weight file became shorter while it was read, at tensor {name!r}")
        done += count
