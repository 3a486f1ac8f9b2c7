"""Tensors as named bytes, wherever they live: torch, numpy, a safetensors file, the wire. Imports no torch.

A `Source` knows dtype and shape at once and gives its bytes each time it is asked, so that a model is never copied as a whole.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.client.errors import DataLoss, FailedPrecondition

__all__ = ["ADAPTER_CONFIG", "RawTensor", "Source", "as_source", "read_folder", "read_header", "to_float32"]

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # what PEFT writes
ITEM_SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}  # what heads may be stored in
_SAFETENSORS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_SHARDED = {"DTensor", "ShardedTensor", "FlatParameter"}
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """Bytes with a dtype that numpy lacks (bfloat16), little-endian, row-major. Goes back into push_head as it is."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def to_float32(self) -> NDArray[np.float32]:
        """The same numbers as float32, exactly; `shape`."""
        return to_float32(self.dtype, self.shape, self.data)


@dataclass(frozen=True, slots=True)
class Source:
    """Where one tensor's bytes come from."""

    dtype: str  # "float32", "bfloat16", "float16", or another one that is refused later, by name
    shape: tuple[int, ...]
    read: Callable[[], memoryview]  # little-endian bytes, row-major; may copy from a device

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


def to_float32(dtype: str, shape: tuple[int, ...], data: bytes) -> NDArray[np.float32]:
    """Decode little-endian bytes; bfloat16 is the upper half of a float32. Returns an array of `shape`."""
    if dtype not in ITEM_SIZE or len(data) != math.prod(shape) * ITEM_SIZE[dtype]:
        raise DataLoss(f"a tensor's bytes do not fit its header: {dtype!r}, shape {shape}, {len(data)} bytes")
    if dtype == "bfloat16":
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)
    kind = "<f4" if dtype == "float32" else "<f2"
    return np.frombuffer(data, dtype=kind).astype(np.float32).reshape(shape)


def as_source(name: str, value: Any) -> Source:
    """A torch tensor, a numpy array (ml_dtypes' bfloat16 too) or a RawTensor. A sharded one is refused; else TypeError."""
    if isinstance(value, Source):
        return value
    if isinstance(value, RawTensor):
        return Source(value.dtype, value.shape, lambda: memoryview(value.data))
    if any(kind.__name__ in _SHARDED for kind in type(value).__mro__) or name.endswith("_flat_param"):
        raise FailedPrecondition(_gather_hint(name, type(value).__name__), field=name)
    torch = sys.modules.get("torch")  # whoever holds a torch tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(torch, name, value)
    if isinstance(value, np.ndarray):
        return _from_numpy(value)
    raise TypeError(f"weights[{name!r}] must be a torch tensor, a numpy array or a RawTensor: {type(value).__name__}")


def _from_torch(torch: Any, name: str, tensor: Any) -> Source:
    if tensor.is_meta or (hasattr(tensor, "ds_id") and tensor.numel() == 0):  # DeepSpeed ZeRO-3 leaves an empty tensor
        raise FailedPrecondition(_gather_hint(name, "a tensor without data"), field=name)
    dtype = str(tensor.dtype).removeprefix("torch.")

    def read() -> memoryview:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return _bytes(flat.view(torch.int16).numpy() if dtype == "bfloat16" else flat.numpy())

    return Source(dtype, tuple(tensor.shape), read)


def _from_numpy(array: NDArray[Any]) -> Source:
    return Source(array.dtype.newbyteorder("=").name, tuple(array.shape), lambda: _bytes(array))


def _bytes(array: NDArray[Any]) -> memoryview:
    if array.dtype.name == "bfloat16":  # ml_dtypes: no buffer protocol of its own
        array = array.view(np.uint16)
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return memoryview(little.reshape(-1).view(np.uint8).data)


def _gather_hint(name: str, what: str) -> str:
    hint = "gather first (full_tensor(), or a full state dict on rank 0)"
    return f"weights[{name!r}] is {what}: this process holds only a part of it\nhint: {hint}"


def read_folder(folder: Path) -> Iterator[tuple[str, Source]]:
    """Tensors of a head folder, or of a model's or an adapter's that save_pretrained wrote. Only headers are read now."""
    for file in _weight_files(folder):
        yield from read_header(file).items()


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "head.safetensors").is_file():
        return [folder / "head.safetensors"]
    if (folder / ADAPTER_CONFIG).is_file():
        if not (folder / ADAPTER_WEIGHTS).is_file():
            hint = "save with save_pretrained (safetensors; never pickle)"
            raise FailedPrecondition(f"the adapter folder has no {ADAPTER_WEIGHTS}: {folder}\nhint: {hint}")
        return [folder / ADAPTER_WEIGHTS]
    if index.is_file():
        return sorted({folder / Path(name).name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / ADAPTER_WEIGHTS).is_file():
        raise FailedPrecondition(f"the folder holds an adapter without its {ADAPTER_CONFIG}: {folder}")
    raise FailedPrecondition(
        f"no head.safetensors and no model.safetensors in the folder: {folder}\n"
        "hint: save with save_pretrained (safetensors; never pickle)"
    )


def read_header(file: Path) -> dict[str, Source]:
    """Where each tensor of a safetensors file lies. Raises DataLoss if the file is not whole."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise DataLoss(f"not a whole safetensors file: {file.name}")
        header: dict[str, Any] = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {name: _from_file(file, 8 + length, size, entry) for name, entry in header.items()}


def _from_file(file: Path, data_start: int, file_size: int, entry: dict[str, Any]) -> Source:
    start, end = (int(offset) + data_start for offset in entry["data_offsets"])
    if not data_start <= start <= end <= file_size:
        raise DataLoss(f"the safetensors file is truncated: {file.name}")

    def read() -> memoryview:
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(end - start)
        if len(data) != end - start:
            raise DataLoss(f"the file became shorter while it was read: {file.name}")
        return memoryview(data)

    return Source(_SAFETENSORS.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]), read)
