"""Tensors as named bytes, wherever they live: torch, numpy, the wire; folders.py reads files. Imports no torch.

A `Source` knows dtype and shape at once and gives its bytes each time it is asked, so that a model is never copied as a whole.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.client.errors import DataLoss, FailedPrecondition
from polyhead.heads.format.precision import FILE_DTYPES, ITEM_BYTES

__all__ = ["RawTensor", "Source", "as_source", "to_float32"]

ITEM_SIZE = {FILE_DTYPES[name]: size for name, size in ITEM_BYTES.items()}  # what heads may be stored in
_SHARDED = {"DTensor", "ShardedTensor", "FlatParameter"}


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
    torch = sys.modules.get("torch")  # a caller who holds a torch tensor has imported it
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
