"""A head as one safetensors file, byte for byte as the safetensors library writes it, without holding it in memory.

The order is the library's: float32, bfloat16, float16, then by name; no metadata; the header padded to 8 bytes.
So equal weights have equal files, and equal digests, whoever serialised them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from polyhead.client.weights.tensors import Source

__all__ = ["CanonicalFile", "serialise"]

CHUNK_BYTES = 1 << 20  # the contract's limit for one message
_ORDER = {"float32": (0, "F32"), "bfloat16": (1, "BF16"), "float16": (2, "F16")}


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
    names = sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype][0], name.encode()))
    header, offset = {}, 0
    for name in names:
        source = tensors[name]
        end = offset + source.num_bytes
        header[name] = {"dtype": _ORDER[source.dtype][1], "shape": list(source.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digest, each = hashlib.sha256(head), {}
    for name in names:
        data = tensors[name].read()
        digest.update(data)
        if hash_each:
            each[name] = hashlib.sha256(data).digest()
    return CanonicalFile(head, tuple(tensors[name] for name in names), len(head) + offset, digest.hexdigest(), each)
