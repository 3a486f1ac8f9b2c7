"""The store's records and their bytes: canonical JSON with a checksum; a torn file never reads as a record. Opens nothing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.manifest import HeadManifest

FORMAT = 1
MAX_RECORD_BYTES = 32 * 1024  # two of them fit into the reserve that a full disk leaves us
HISTORY_ID_CHARS = 32  # 128 bits
_MAX_TEXT = 4096  # characters of a note; a request id has a tighter limit
_MAX_REQUEST_ID = 200
_MAX_METRICS = 64
_MAX_METRIC_NAME = 64  # characters


class DamagedRecord(Exception):
    """The bytes are not a whole record of this kind. Never leaves the store: it becomes a StoreDamage or DataLoss."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of one head. Nothing but its labels ever changes."""

    name: str
    version: int
    digest: str  # names what is computed: SHA-256 of the blob, 64 hex digits; of a LoRA head heads.lora.adapted_digest
    num_bytes: int  # of the blob
    manifest: HeadManifest
    created_at: float  # unix seconds
    labels: tuple[str, ...] = ()
    request_id: str = ""
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    adapter_sha256: str = ""  # of a LoRA head's blob
    sent_sha256: str = ""  # of the file that was sent, if that was a part and its sender did not know the whole: a retry is known by it
    request_digest: str = ""  # names all that the request asked for; older stores hold none
    label_requests: tuple[tuple[str, str], ...] = ()  # (request id, digest) of the last changes of the labels

    @property
    def blob(self) -> str:
        """SHA-256 of the head's file."""
        return self.adapter_sha256 or self.digest


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """One active set. The record with the highest number is what a server serves."""

    number: int
    parent: int | None  # what a rollback without a number goes back to
    heads: Mapping[str, int]  # name -> version
    created_at: float  # unix seconds
    request_id: str = ""
    note: str = ""
    answer: Mapping[str, Any] | None = None  # what the caller was told, for a retry with the same request id
    request_digest: str = ""  # names all that the request asked for; older stores hold none
    previous: str = ""  # SHA-256 of the record before: a chain by which two histories are compared; older stores hold none


def encode(kind: str, content: Mapping[str, Any]) -> bytes:
    """Canonical bytes. InvalidArgument if the content is no JSON or longer than MAX_RECORD_BYTES."""
    try:
        text = _canonical(json.loads(_canonical(content)))  # twice: number keys sort differently once they are text
    except (TypeError, ValueError, RecursionError):
        raise InvalidArgument(f"a {kind} record holds something that JSON cannot", field=kind) from None
    record = {"checksum": _checksum(kind, text), "content": json.loads(text), "format": FORMAT, "kind": kind}
    data = _canonical(record).encode("ascii") + b"\n"
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidArgument(f"a {kind} record is longer than {MAX_RECORD_BYTES} bytes: {len(data)}", field=kind)
    return data


def decode(kind: str, data: bytes) -> dict[str, Any]:
    """The content. DamagedRecord unless `data` is what `encode` makes, byte for byte; FailedPrecondition for a newer format."""
    try:
        record = json.loads(data.decode("ascii"))
        number = record["format"]
        if isinstance(number, int) and number > FORMAT:
            raise FailedPrecondition(f"the store was written by a newer polyhead: {kind} record of format {number}")
        content = record["content"]
        is_whole = isinstance(content, dict) and encode(kind, content) == data
    except (ValueError, KeyError, TypeError, RecursionError, InvalidArgument):
        is_whole = False
    if not is_whole:
        raise DamagedRecord(f"the {kind} record is torn or damaged")
    return dict(content)


def encode_version(record: VersionRecord) -> bytes:
    plain = {
        "name": record.name,
        "version": record.version,
        "digest": record.digest,
        "num_bytes": record.num_bytes,
        "manifest": json.loads(record.manifest.to_json()),
        "created_at": record.created_at,
        "labels": list(record.labels),
        "request_id": record.request_id,
        "metrics": dict(record.metrics),
    }
    for name in ("adapter_sha256", "sent_sha256", "request_digest", "label_requests"):
        if value := getattr(record, name):
            plain[name] = value
    return encode("version", plain)


def decode_version(data: bytes) -> VersionRecord:
    """DamagedRecord, or FailedPrecondition for a newer format."""
    return _build(_version_from_plain, decode("version", data))


def version_sha256(record: VersionRecord) -> bytes:
    """Of the record's bytes: by which two stores compare what they hold."""
    return hashlib.sha256(encode_version(record)).digest()


def encode_generation(record: GenerationRecord) -> bytes:
    return encode("generation", generation_to_plain(record))


def sha256_of(record: GenerationRecord) -> str:
    """Of the bytes that the record has in a file of its own."""
    return hashlib.sha256(encode_generation(record)).hexdigest()


def history_id(record: GenerationRecord) -> str:
    """Names a generation and all before it, since a record holds the hash of the one before: stores that went apart have other ids."""
    return sha256_of(record)[:HISTORY_ID_CHARS]


def generation_to_plain(record: GenerationRecord) -> dict[str, Any]:
    plain = {
        "number": record.number,
        "parent": record.parent,
        "heads": dict(record.heads),
        "created_at": record.created_at,
        "request_id": record.request_id,
        "note": record.note,
        "answer": None if record.answer is None else dict(record.answer),
    }
    for name in ("request_digest", "previous"):
        if value := getattr(record, name):
            plain[name] = value
    return plain


def decode_generation(data: bytes) -> GenerationRecord:
    """DamagedRecord, or FailedPrecondition for a newer format."""
    return _build(generation_from_plain, decode("generation", data))


def check_request_id(request_id: str) -> str:
    """InvalidArgument for an id that is too long or not printable. "" means that the caller gave none."""
    if len(request_id) > _MAX_REQUEST_ID or not request_id.isprintable():
        raise InvalidArgument(
            f"request_id must be printable and at most {_MAX_REQUEST_ID} characters: {request_id[:40]!r}", field="request_id"
        )
    return request_id


def check_note(note: str) -> str:
    """InvalidArgument for a note of more than 4096 characters."""
    if len(note) > _MAX_TEXT:
        raise InvalidArgument(f"note is longer than {_MAX_TEXT} characters: {len(note)}", field="note")
    return note


def check_metrics(metrics: Mapping[str, float] | None) -> Mapping[str, float]:
    """A frozen copy as floats. InvalidArgument for more than 64, for a bad name, or for a value that is not finite."""
    copy = {str(key): float(value) for key, value in (metrics or {}).items()}
    if len(copy) > _MAX_METRICS:
        raise InvalidArgument(f"at most {_MAX_METRICS} metrics: {len(copy)}", field="metrics")
    for key, value in copy.items():
        if not 1 <= len(key) <= _MAX_METRIC_NAME or not key.isprintable():
            raise InvalidArgument(f"a metric's name has 1 to {_MAX_METRIC_NAME} printable characters: {key[:80]!r}", field="metrics")
        if not math.isfinite(value):
            raise InvalidArgument(f"metric {key[:80]!r} must be finite: {value}", field="metrics")
    return MappingProxyType(copy)


_Record = TypeVar("_Record")


def _build(make: Callable[[dict[str, Any]], _Record], plain: dict[str, Any]) -> _Record:
    try:
        return make(plain)
    except (KeyError, TypeError, ValueError, AttributeError, InvalidArgument):
        raise DamagedRecord("the record has missing or unknown fields") from None


def _version_from_plain(plain: dict[str, Any]) -> VersionRecord:
    fields = {**plain, "manifest": HeadManifest.from_json(json.dumps(plain["manifest"]))}
    fields["labels"] = tuple(plain["labels"])
    fields["label_requests"] = tuple((str(request_id), str(digest)) for request_id, digest in plain.get("label_requests", ()))
    fields["metrics"] = MappingProxyType(dict(plain["metrics"]))
    return VersionRecord(**fields)


def generation_from_plain(plain: dict[str, Any]) -> GenerationRecord:
    """KeyError, TypeError or ValueError for other fields than a record's."""
    answer = plain["answer"]
    fields = {**plain, "heads": MappingProxyType(dict(plain["heads"]))}
    fields["answer"] = None if answer is None else MappingProxyType(dict(answer))
    return GenerationRecord(**fields)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)


def _checksum(kind: str, text: str) -> str:
    return hashlib.sha256(f"polyhead {kind} {FORMAT}\n{text}".encode("ascii")).hexdigest()
