"""A head as one safetensors file, byte for byte as the safetensors library writes it, without holding it in memory.

The order is the library's: float32, bfloat16, float16, then by name; no metadata; the header padded to 8 bytes.
So equal weights have equal files, and equal digests, whichever program wrote them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from polyhead.client.errors import as_client_errors
from polyhead.client.weights.tensors import Source
from polyhead.heads.format.precision import FILE_DTYPES
from polyhead.heads.format.tensorfile import header_of, in_order

__all__ = ["CanonicalFile", "serialise"]

CHUNK_BYTES = 1 << 20  # the contract's limit for one message
_FILE_NAMES = {name: spelled for spelled, name in FILE_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class CanonicalFile:
    """A file that exists as a header and a list of sources; `chunks` reads them a second time."""

    header: bytes  # length prefix included
    sources: tuple[Source, ...]  # in file order
    num_bytes: int
    sha256: str
    tensor_sha256: dict[str, bytes] = field(default_factory=dict)  # name -> of its bytes, if it was asked for

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order, each at most 1 MiB."""
        offset = 0
        for data in self._buffers():
            for start in range(0, len(data), CHUNK_BYTES):
                chunk = bytes(data[start : start + CHUNK_BYTES])
                yield offset, chunk
                offset += len(chunk)

    def _buffers(self) -> Iterator[memoryview]:
        yield memoryview(self.header)
        for source in self.sources:
            yield source.read()


def serialise(tensors: Mapping[str, Source], *, hash_each: bool = False) -> CanonicalFile:
    """Lay the file out and hash it: reads every tensor once, one at a time."""
    layout = {name: (_FILE_NAMES.get(each.dtype, each.dtype), each.shape) for name, each in tensors.items()}
    with as_client_errors():
        names = in_order({name: dtype for name, (dtype, _) in layout.items()})
        head = header_of({name: (*layout[name], tensors[name].num_bytes) for name in names})
    digest, each = hashlib.sha256(head), {}
    for name in names:
        data = tensors[name].read()
        digest.update(data)
        if hash_each:
            each[name] = hashlib.sha256(data).digest()
    num_bytes = len(head) + sum(tensors[name].num_bytes for name in names)
    return CanonicalFile(head, tuple(tensors[name] for name in names), num_bytes, digest.hexdigest(), each)
