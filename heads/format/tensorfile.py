"""The safetensors container of a head: a strict check of the header before any other parser sees it, and a canonical writer.

Stricter than the format: no duplicate keys, no empty tensors, small names and metadata, three dtypes. What passes here the
safetensors library accepts, too. Knows bytes and shapes only: whether numbers are finite is decided where they are loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument, PolyheadError
from polyhead.heads.format.precision import FILE_DTYPES, ITEM_BYTES

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 20_000
MAX_METADATA_BYTES = 4096
MAX_RANK = 4
PREFIX_BYTES = 8  # little-endian length of the JSON header
MAGIC_BYTES = 16  # enough to tell what a file is
_OTHER_DTYPES = frozenset(
    {
        "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0",
        "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16", "U16", "I32", "U32", "F64", "I64", "U64", "C64",
    }
)  # fmt: skip
_DTYPE_ORDER = tuple(FILE_DTYPES)
_NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")
# Matches from every quote, closed or not, and never gives back: failing at each of a million quotes would take quadratic time.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_MAGICS = (
    (b"PK\x03\x04", "a zip archive, such as torch.save writes"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x7fELF", "an ELF program"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    *((bytes((0x80, protocol)), "a pickle") for protocol in range(2, 6)),
)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    start: int  # byte offsets in the file, `end` exclusive
    end: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A header that passed every check: the tensors cover the rest of the file exactly."""

    tensors: Mapping[str, TensorEntry]  # in file order
    file_bytes: int

    def data(self, file: bytes | bytearray | memoryview) -> dict[str, TensorData]:
        """The tensors of the whole file as views, not copies."""
        assert len(file) == self.file_bytes, "the buffer is not the file that the header was read from"
        view = memoryview(file)
        return {name: TensorData(t.dtype, t.shape, view[t.start : t.end]) for name, t in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class TensorData:
    """One tensor to write: little-endian, row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


def header_size(first_bytes: bytes | bytearray | memoryview, file_size: int) -> int:
    """How many bytes prefix and header take, from the first 16 bytes. InvalidArgument for another kind of file."""
    start = bytes(first_bytes[:MAGIC_BYTES])
    assert len(start) >= min(PREFIX_BYTES + len("{}"), file_size), "header_size needs the first bytes of the file"
    num_bytes = int.from_bytes(start[:PREFIX_BYTES], "little")
    is_plausible = num_bytes <= MAX_HEADER_BYTES and start[PREFIX_BYTES : PREFIX_BYTES + 1] == b"{"
    if not is_plausible:  # asked first: a header of 640 bytes starts like a pickle
        _refuse_other_kind(start)
    if len(start) <= PREFIX_BYTES:
        _refuse(f"the file is too short: {file_size} bytes")
    if num_bytes > MAX_HEADER_BYTES:
        _refuse(f"the header is longer than {MAX_HEADER_BYTES} bytes: {num_bytes}")
    if num_bytes < len("{}") or PREFIX_BYTES + num_bytes > file_size:
        _refuse(f"the header's length does not fit a file of {file_size} bytes: {num_bytes}")
    if not is_plausible:
        _refuse("the header does not start with '{'")
    return PREFIX_BYTES + num_bytes


def read_header(first_bytes: bytes | bytearray | memoryview, file_size: int) -> TensorFile:
    """Check and parse the header; `first_bytes` holds at least `header_size` bytes, `file_size` is that of the whole file.

    InvalidArgument for a malformed file; FailedPrecondition for a dtype that safetensors has but a head cannot have.
    """
    end = header_size(first_bytes, file_size)
    assert len(first_bytes) >= end, "read_header needs the whole header"
    header = bytes(first_bytes[PREFIX_BYTES:end])
    _check_structure(header)
    parsed = _parse(header)
    _check_metadata(parsed.pop("__metadata__", {}))
    if not parsed:
        _refuse("the file holds no tensors")
    entries = {_check_tensor_name(name): _read_entry(name, entry, end) for name, entry in parsed.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: item[1].start))
    _check_cover(ordered, end, file_size)
    return TensorFile(ordered, file_size)


def find_mismatches(tensors: Mapping[str, TensorEntry], expected: Mapping[str, Sequence[int]]) -> list[str]:
    """What differs from the expected names and shapes, one sentence each, missing tensors first; empty if nothing does."""
    missing = [f"missing: {name} {list(expected[name])}" for name in sorted(expected.keys() - tensors.keys())]
    extra = [f"not expected: {name} {list(tensors[name].shape)}" for name in sorted(tensors.keys() - expected.keys())]
    wrong = [
        f"{name}: expected {list(expected[name])}, received {list(tensors[name].shape)}"
        for name in sorted(tensors.keys() & expected.keys())
        if tuple(expected[name]) != tensors[name].shape
    ]
    return missing + wrong + extra


def check_schema(tensors: Mapping[str, TensorEntry], expected: Mapping[str, Sequence[int]]) -> None:
    """FailedPrecondition that names the first five mismatches and counts the rest."""
    mismatches = find_mismatches(tensors, expected)
    if mismatches:
        shown = "; ".join(mismatches[:5]) + (f"; and {len(mismatches) - 5} more" if len(mismatches) > 5 else "")
        count = {"num_mismatches": str(len(mismatches))}
        raise FailedPrecondition(f"the tensors do not fit this model: {shown}", metadata=count)


def canonical_header(tensors: Mapping[str, TensorData]) -> bytes:
    """Prefix and header of the one file that these tensors make: no metadata, padded with spaces to 8 bytes.

    F32, BF16, F16 in this order, by name within each, as the safetensors library writes them: a file that was saved with it and
    without metadata has the same SHA-256. InvalidArgument for what `read_header` would refuse.
    """
    return header_of({name: (each.dtype, each.shape, memoryview(each.data).nbytes) for name, each in tensors.items()})


def header_of(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """The same from dtype, shape and number of bytes alone."""
    offset = 0
    header: dict[str, Any] = {}
    for name in in_order({name: dtype for name, (dtype, _, _) in tensors.items()}):
        dtype, shape, num_bytes = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    first_bytes = len(text).to_bytes(PREFIX_BYTES, "little") + text
    read_header(first_bytes, len(first_bytes) + offset)
    return first_bytes


def in_order(dtypes: Mapping[str, str]) -> list[str]:
    """The names in the order in which the canonical file holds them. FailedPrecondition for a dtype that a head cannot have."""
    for dtype in dtypes.values():
        _check_dtype(dtype)
    return sorted(dtypes, key=lambda name: (_DTYPE_ORDER.index(dtypes[name]), name))


def canonical_chunks(tensors: Mapping[str, TensorData]) -> Iterator[bytes | memoryview]:
    """The canonical file piece by piece: the header, then each tensor's bytes without a copy."""
    yield canonical_header(tensors)
    for name in in_order({name: tensor.dtype for name, tensor in tensors.items()}):
        yield memoryview(tensors[name].data).cast("B")


def canonical_bytes(tensors: Mapping[str, TensorData]) -> bytes:
    """The canonical file: equal weights give equal bytes, so equal SHA-256."""
    return b"".join(canonical_chunks(tensors))


def write_canonical(tensors: Mapping[str, TensorData], file: BinaryIO) -> int:
    """Write the canonical file; how many bytes."""
    return sum(file.write(chunk) for chunk in canonical_chunks(tensors))


# ---- the checks, in the order in which read_header makes them


def _refuse(problem: str) -> NoReturn:
    raise InvalidArgument(f"not a valid safetensors file: {problem}", field="data")


def _refuse_other_kind(start: bytes) -> None:
    for magic, kind in _MAGICS:
        if start.startswith(magic):
            raise InvalidArgument(f"a head is a safetensors file; this is {kind}", field="data")


def _check_structure(header: bytes) -> None:
    """Depth and count before a parser recurses or allocates: without strings, three rounds of closing brackets leave none."""
    brackets = _STRING.sub(b"", header).translate(None, _NOT_BRACKETS)
    if brackets.count(b"{") > MAX_TENSORS + 2:  # the outer object and __metadata__
        _refuse(f"more than {MAX_TENSORS} tensors")
    rest = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if rest not in (b"{}", b""):
        _refuse("the header is nested too deeply or its brackets do not match")


def _parse(header: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_int=_parse_count,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except PolyheadError:
        raise
    except UnicodeDecodeError:
        _refuse("the header is not UTF-8")
    except (ValueError, RecursionError):
        _refuse("the header is not JSON")
    if not isinstance(parsed, dict):
        _refuse("the header is not a JSON object")
    return parsed


def _refuse_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            _refuse(f"duplicate key {key[:80]!r}")
        result[key] = value
    return result


def _parse_count(text: str) -> int:
    if not text.isdigit() or len(text) > 15:  # also "-0"
        _refuse_number(text)
    return int(text)


def _refuse_number(text: str) -> NoReturn:
    _refuse(f"sizes and offsets are whole numbers below 10^15, not {text[:40]}")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("__metadata__ must map text to text")
    try:
        num_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    except UnicodeEncodeError:  # half of a surrogate pair
        _refuse("__metadata__ is not Unicode text")
    if num_bytes > MAX_METADATA_BYTES:
        _refuse(f"__metadata__ is longer than {MAX_METADATA_BYTES} bytes: {num_bytes}")


def _check_tensor_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        _refuse(f"a tensor name is made of letters, digits, '_' and '.', at most 256: {name[:80]!r}")
    return name


def _check_dtype(dtype: object) -> str:
    if isinstance(dtype, str) and dtype in ITEM_BYTES:
        return dtype
    if isinstance(dtype, str) and dtype in _OTHER_DTYPES:
        raise FailedPrecondition(f"a head's tensors are F32, BF16 or F16, not {dtype}", field="data")
    _refuse(f"unknown dtype {str(dtype)[:40]!r}")


def _read_entry(name: str, entry: object, data_start: int) -> TensorEntry:
    shown = name[:80]
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(f"{shown!r} must have exactly dtype, shape and data_offsets")
    dtype = _check_dtype(entry["dtype"])
    shape = _read_counts(entry["shape"])
    offsets = _read_counts(entry["data_offsets"])
    if shape is None or len(shape) > MAX_RANK or 0 in shape:
        _refuse(f"{shown!r} must have a shape of at most {MAX_RANK} positive sizes")
    if offsets is None or len(offsets) != 2:
        _refuse(f"{shown!r} must have two data_offsets")
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        _refuse(f"{shown!r} of shape {list(shape)} and dtype {dtype} cannot have {end - start} bytes")
    return TensorEntry(dtype, shape, data_start + start, data_start + end)


def _read_counts(value: object) -> tuple[int, ...] | None:
    """A list of numbers as a tuple; `True` is no number here. None for anything else."""
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        return None
    return tuple(value)


def _check_cover(ordered: Mapping[str, TensorEntry], data_start: int, file_size: int) -> None:
    position = data_start
    for name, entry in ordered.items():
        if entry.start != position:
            _refuse(f"{name[:80]!r} {'overlaps another tensor' if entry.start < position else 'comes after a hole'}")
        position = entry.end
    if position != file_size:
        _refuse(f"the tensors end at byte {position} of a file of {file_size}")
