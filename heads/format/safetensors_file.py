"""Where the tensors of a safetensors file on disk lie: of a model's, too, whose dtypes and names are free. Touches no weights.

A head's own file is read by tensorfile.py, which is stricter. Every number is checked against the file's size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from polyhead.heads.format.errors import DataLoss

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
PREFIX_BYTES = 8  # little-endian length of the JSON header
_ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}
_HINT = "hint: download or save it again"


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """One tensor of a file."""

    dtype: str  # as the header spells it; it may be an unknown one
    shape: tuple[int, ...]
    start: int  # byte offset in the file
    num_bytes: int


def place_tensors(path: Path) -> dict[str, PlacedTensor]:
    """By name, in the header's order. DataLoss for a file that is not whole or whose header is damaged; it names the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(PREFIX_BYTES), "little")
        if size < PREFIX_BYTES or length > min(MAX_HEADER_BYTES, size - PREFIX_BYTES):
            raise DataLoss(f"not a whole safetensors file: {path.name!r}\n{_HINT}")
        try:
            header: object = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise DataLoss(f"the safetensors file has a damaged header, which is not JSON: {path.name!r}\n{_HINT}") from None
    if not isinstance(header, dict):
        raise DataLoss(f"the safetensors file has a damaged header, which is not an object: {path.name!r}\n{_HINT}")
    header.pop("__metadata__", None)
    return {name: _placed(path.name, name, entry, PREFIX_BYTES + length, size) for name, entry in header.items()}


def _placed(file: str, name: str, entry: Any, data_start: int, file_size: int) -> PlacedTensor:
    try:
        return _checked(entry, data_start, file_size)
    except (KeyError, TypeError, ValueError, OverflowError):
        _damaged(file, name)


def _checked(entry: Mapping[str, Any], data_start: int, file_size: int) -> PlacedTensor:
    """ValueError and the like for an entry that cannot be."""
    dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
    start, end = (int(offset) for offset in entry["data_offsets"])
    if not 0 <= start <= end <= file_size - data_start or min(shape, default=0) < 0:
        raise ValueError("outside the file")
    if dtype in _ITEM_BYTES and end - start != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError("shape and bytes differ")
    return PlacedTensor(dtype, shape, data_start + start, end - start)


def _damaged(file: str, name: str) -> NoReturn:
    raise DataLoss(f"the safetensors file is truncated or damaged at tensor {name[:120]!r}: {file!r}\n{_HINT}")
