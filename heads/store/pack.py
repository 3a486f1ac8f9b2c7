"""Old generations in one file: a start reads it at once, where ten thousand small files take seconds. Opens nothing.

The first line says what was dropped and carries a checksum over everything; then one line for each record, the oldest first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.store import records
from polyhead.heads.store.records import DamagedRecord, GenerationRecord

FORMAT = 1
MAX_PACK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of the history. Followers and retries that come later than that find their generation gone."""

    max_files: int = 512  # with more files of their own the older generations are packed
    num_files: int = 256  # newest generations that keep theirs then
    num_generations: int = 1000  # newest ones that are kept whatever their age
    seconds: float = 30 * 24 * 3600.0  # others are kept for so long: number, heads, hash chain, request id
    max_generations: int = 50_000  # in all


@dataclass(frozen=True, slots=True)
class Pack:
    """Records by number, in order, as lines of the file; and the end of what was dropped before them."""

    lines: Mapping[int, bytes] = field(default_factory=dict)
    dropped: int = 0  # the highest number that is no longer kept
    dropped_sha256: str = ""  # of its record: what `previous` of the next one names

    def encode(self) -> bytes:
        body = b"".join(line + b"\n" for line in self.lines.values())
        header = {"dropped": self.dropped, "dropped_sha256": self.dropped_sha256, "format": FORMAT, "num": len(self.lines)}
        return _plain({**header, "checksum": _checksum(header, body)}) + b"\n" + body


def decode(data: bytes) -> tuple[Pack, dict[int, GenerationRecord]]:
    """The pack and its records. DamagedRecord; FailedPrecondition for a newer format."""
    first, _, body = data.partition(b"\n")
    try:
        header = json.loads(first)
        checksum = header.pop("checksum")
        if header["format"] > FORMAT:
            raise FailedPrecondition(f"the store was written by a newer polyhead: packed history of format {header['format']}")
        lines = body.split(b"\n")[:-1]
        if checksum != _checksum(header, body) or len(lines) != header["num"]:
            raise DamagedRecord("the packed history is torn or damaged")
        plain = json.loads(b"[" + b",".join(lines) + b"]")
        found = [records.generation_from_plain(each) for each in plain]
        pack = Pack({record.number: line for record, line in zip(found, lines, strict=True)}, header["dropped"], header["dropped_sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedRecord("the packed history is torn or damaged") from None
    return pack, {record.number: record for record in found}


def line(record: GenerationRecord) -> bytes:
    """A record as a line of a pack."""
    return _plain(records.generation_to_plain(record))


def repacked(pack: Pack, new: Mapping[int, GenerationRecord], known: Mapping[int, GenerationRecord], limits: Retention, now: float) -> Pack:
    """`pack` with `new` records behind its own, without those that need not be kept any more. `known` holds the records of both."""
    lines = {**pack.lines, **{number: line(record) for number, record in sorted(new.items())}}
    numbers = list(lines)
    first_kept = numbers[-1] + 1 + limits.num_files - limits.num_generations
    size = sum(map(len, lines.values())) + len(lines)
    last = 0
    for index, number in enumerate(numbers):
        is_young = number >= first_kept or known[number].created_at > now - limits.seconds
        if is_young and len(numbers) - index <= limits.max_generations and size <= MAX_PACK_BYTES:
            break
        size -= len(lines.pop(number)) + 1
        last = number
    return Pack(lines, last, records.sha256_of(known[last])) if last else Pack(lines, pack.dropped, pack.dropped_sha256)


def _plain(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=dict).encode("ascii")


def _checksum(header: Mapping[str, Any], body: bytes) -> str:
    sha256 = hashlib.sha256(b"polyhead packed generations\n" + _plain(header) + b"\n")
    sha256.update(body)
    return sha256.hexdigest()
