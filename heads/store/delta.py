"""A head file made of a stored one and of the tensors that differ from it: what a push of only the changes becomes on the disk.

What is made is whole: it needs the stored one no more. Bytes go from file to file in slices, so that no tensor has to be in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from polyhead.heads.format import tensorfile
from polyhead.heads.format.errors import DataLoss, FailedPrecondition, InvalidArgument
from polyhead.heads.format.pauses import pause_point
from polyhead.heads.format.tensorfile import TensorEntry, TensorFile
from polyhead.heads.store import failpoints, io_errors
from polyhead.heads.store.blob_io import OpenBlob
from polyhead.heads.store.staging import Staging

SLICE_BYTES = 1 << 20


class Readable(Protocol):
    """A file that can be read from anywhere."""

    @property
    def num_bytes(self) -> int: ...

    def pread(self, view: memoryview, offset: int) -> None: ...


@dataclass(frozen=True, slots=True)
class TensorHash:
    """One tensor of a stored file, and its content in 32 bytes."""

    name: str
    dtype: str  # as in the file: "F32", "BF16", "F16"
    shape: tuple[int, ...]
    sha256: bytes


def hash_tensors(file: Readable) -> list[TensorHash]:
    """Every tensor of a head file, in file order, with a pause point after each."""
    found = []
    for name, entry in read_header(file).tensors.items():
        sha256 = hashlib.sha256()
        for piece in _slices(file, entry):
            sha256.update(piece)
        found.append(TensorHash(name, entry.dtype, entry.shape, sha256.digest()))
        pause_point()
    return found


def read_header(file: Readable) -> TensorFile:
    """The header of a file on disk. InvalidArgument or FailedPrecondition as in `tensorfile`."""
    first = _read(file, min(tensorfile.MAGIC_BYTES, file.num_bytes))
    return tensorfile.read_header(_read(file, tensorfile.header_size(first, file.num_bytes)), file.num_bytes)


def rebuild(
    base: OpenBlob,
    sent: Staging,
    begin: Callable[[int, str], Staging],
    num_bytes: int = 0,
    sha256: str = "",
) -> Staging:
    """The canonical file of the base's tensors with those of `sent` in their places, staged with `begin` and verified.

    There is a pause point after each tensor.

    FailedPrecondition if a tensor that was sent is not the base's by name, dtype and shape, or if the result has another size or
    SHA-256 than declared (0 and "" declare nothing); InvalidArgument for a file that is none; DataLoss if the base is damaged.
    """
    if not sha256 and not base.is_intact():  # with a declared one, the result shows it
        raise _damaged()
    old, new = _read_base(base), read_header(sent)
    _check_fits(new, old)
    header = tensorfile.header_of({name: (each.dtype, each.shape, each.end - each.start) for name, each in old.tensors.items()})
    whole_bytes = len(header) + sum(each.end - each.start for each in old.tensors.values())
    if num_bytes not in (0, whole_bytes):
        raise InvalidArgument(f"the whole file has {whole_bytes} bytes, not the declared {num_bytes}", field="header.num_bytes")
    whole = begin(whole_bytes, "")
    try:
        whole.write(header)
        for name in tensorfile.in_order({name: each.dtype for name, each in old.tensors.items()}):
            source, entry = (sent, new.tensors[name]) if name in new.tensors else (base, old.tensors[name])
            for piece in _slices(source, entry):
                whole.write(piece)
            with io_errors.plain_errors("could not store the head"):
                failpoints.hit("mid_rebuild")
            pause_point()
        _check_digest(whole.verify(), sha256, base)
        with io_errors.plain_errors("could not store the head"):
            failpoints.hit("after_rebuild")
    except BaseException:
        whole.abort()
        raise
    return whole


def _read_base(base: OpenBlob) -> TensorFile:
    try:
        return read_header(base)
    except (InvalidArgument, FailedPrecondition):  # it was sound when it was pushed
        raise _damaged() from None


def _check_fits(new: TensorFile, old: TensorFile) -> None:
    for name, tensor in new.tensors.items():
        known = old.tensors.get(name)
        if known is None:
            problem = f"not a tensor of the base: {name!r}"
        elif (tensor.dtype, tensor.shape) != (known.dtype, known.shape):
            theirs, ours = f"{known.dtype} {list(known.shape)}", f"{tensor.dtype} {list(tensor.shape)}"
            problem = f"{name} is {theirs} in the base, received {ours}"
        else:
            continue
        raise FailedPrecondition(f"{problem}\nhint: push the whole head", field="data", metadata={"tensor": name})


def _check_digest(found: str, declared: str, base: OpenBlob) -> None:
    if declared in ("", found):
        return
    if not base.is_intact():
        raise _damaged()
    raise FailedPrecondition(
        f"with these changes the base becomes another file than declared: {found}\n"
        "hint: the trainer's copy of the base is not the stored one; push the whole head",
        field="header.sha256",
    )


def _damaged() -> DataLoss:
    return DataLoss("the stored base is damaged\nhint: push the whole head", field="header.delta_base")


def _slices(file: Readable, entry: TensorEntry) -> Iterator[memoryview]:
    """A tensor's bytes piece by piece, in one buffer that each piece overwrites."""
    view = memoryview(bytearray(min(SLICE_BYTES, entry.end - entry.start)))
    for start in range(entry.start, entry.end, SLICE_BYTES):
        piece = view[: min(SLICE_BYTES, entry.end - start)]
        file.pread(piece, start)
        yield piece


def _read(file: Readable, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    file.pread(memoryview(data), 0)
    return bytes(data)
