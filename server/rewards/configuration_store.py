"""Configurations that were added while a server ran, on disk in the folder of the head store: they survive a restart and never change.

    configurations/<kind>--<name>@<version>.yaml    the content, as it was sent
    configurations/<kind>--<name>@<version>.json    the record, with the SHA-256 of the content; a version exists once this is there

The record of a retired one stays, so that its version never stands for anything else. Knows bytes and names; what a content says is
checked by its kind's book. The head store's lock keeps other processes out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polyhead.heads.format.errors import AlreadyExists, DataLoss, PolyheadError, ResourceExhausted
from polyhead.heads.format.manifest import NAME_PATTERN
from polyhead.heads.store import io_errors, records
from polyhead.heads.store.layout import CONFIGURATIONS
from polyhead.heads.store.records import DamagedRecord
from polyhead.heads.store.store import HeadStore
from polyhead.server.rewards.configurations import ConfigurationKind

MAX_STORED = 1024  # records, those of retired ones too
MAX_BYTES = 2 << 20  # of all contents in use: a listing has to fit one message
_FILE = re.compile(rf"({'|'.join(kind.value for kind in ConfigurationKind)})--({NAME_PATTERN.pattern}@[1-9][0-9]{{0,8}})\.(json|yaml)")
_RECORD = "configuration"  # kind of the records, and of their failpoints

Key = tuple[ConfigurationKind, str]  # kind and reference

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredConfiguration:
    """One version. Nothing but its retirement ever changes."""

    kind: ConfigurationKind
    reference: str  # "terse@2"
    sha256: str  # of the content
    num_bytes: int
    created_at: float  # unix seconds
    request_id: str = ""
    request_digest: str = ""  # names all that the request asked for
    retired_at: float = 0.0  # 0: it is in use
    retire_request_id: str = ""
    retire_request_digest: str = ""

    @property
    def key(self) -> Key:
        return self.kind, self.reference


class ConfigurationStore:
    """Methods block on the disk: call them from a worker thread. Thread-safe. ResourceExhausted, StoreIoError."""

    def __init__(self, store: HeadStore) -> None:
        """Read every record. One that is damaged is known by its name alone: it cannot be used, nor its version given again."""
        self._files = store.files
        self.request_ids = store.request_ids  # of all that is in the folder
        self.request_ids.add(self._asked_before)
        self._lock = threading.Lock()
        self._records: dict[Key, StoredConfiguration | None] = {}
        self._has_folder = False  # durably
        with io_errors.plain_errors("could not read the stored configurations"):
            self._load()

    def in_use(self) -> list[StoredConfiguration]:
        """Those that are whole and not retired, the first added first."""
        with self._lock:
            found = [each for each in self._records.values() if each is not None and not each.retired_at]
        return sorted(found, key=lambda each: (each.created_at, each.reference))

    def all(self) -> list[StoredConfiguration]:
        """Those that are whole, retired ones too, the first added first."""
        with self._lock:
            found = [each for each in self._records.values() if each is not None]
        return sorted(found, key=lambda each: (each.created_at, each.reference))

    def find(self, key: Key) -> StoredConfiguration | None:
        """A whole record, of a retired one too."""
        with self._lock:
            return self._records.get(key)

    def of_request(self, request_id: str) -> StoredConfiguration | None:
        """What this request added or retired."""
        with self._lock:
            return next((each for each, _, _ in self._requests(request_id)), None)

    def is_whole(self, stored: StoredConfiguration) -> bool:
        """Whether its content can be read; a retired one has none."""
        try:
            return bool(stored.retired_at) or bool(self.content(stored))
        except PolyheadError:
            return False

    def content(self, stored: StoredConfiguration) -> bytes:
        """DataLoss if it is missing or not what was added."""
        with io_errors.plain_errors("could not read a stored configuration"):
            try:
                data = self._files.read(_path(stored.key, "yaml"), stored.num_bytes)
            except FileNotFoundError:
                data = b""
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise DataLoss(f"the stored content is damaged: {stored.reference}\nhint: add it again under a new version")
        return data

    def check_new(self, key: Key, num_bytes: int, field: str) -> None:
        """AlreadyExists if the version was used before; ResourceExhausted if there is no room."""
        with self._lock:
            if key in self._records:
                found = self._records[key]
                what = "has a damaged record" if found is None else "was retired" if found.retired_at else "is stored"
                hint = "a version stands for one content for good; raise it"
                raise AlreadyExists(f"{key[1]} {what}\nhint: {hint}", field=f"{field}.version")
            used = sum(each.num_bytes for each in self._records.values() if each is not None and not each.retired_at)
            if len(self._records) >= MAX_STORED:
                raise ResourceExhausted(f"{MAX_STORED} configurations are stored, or were: no more can be added")
            if used + num_bytes > MAX_BYTES:
                problem = f"the stored configurations have {used} bytes, at most {MAX_BYTES} with this one of {num_bytes}"
                raise ResourceExhausted(f"{problem}\nhint: retire some")

    def add(self, stored: StoredConfiguration, content: bytes) -> None:
        """Durable when it returns: the content first, then the record, which makes it a version."""
        with self._lock, io_errors.plain_errors("could not store the configuration"):
            self._make_folder()
            written = (("yaml", content), ("json", encode(stored)))
            try:
                for suffix, data in written:
                    self._put(stored.key, suffix, data)
            except OSError:
                for suffix, _ in reversed(written):  # it was never acknowledged
                    self._files.discard(_path(stored.key, suffix))
                raise
            self._records[stored.key] = stored

    def retire(self, stored: StoredConfiguration, request_id: str, request_digest: str) -> None:
        """Its record says so durably when it returns; then its content goes."""
        retired = dataclasses.replace(
            stored, retired_at=time.time(), retire_request_id=request_id, retire_request_digest=request_digest
        )
        self.keep_retired(retired)

    def keep_retired(self, retired: StoredConfiguration) -> None:
        """A record that says so, also of one that was never held here."""
        with self._lock, io_errors.plain_errors("could not retire the configuration"):
            self._make_folder()
            self._put(retired.key, "json", encode(retired))
            self._records[retired.key] = retired
            self._files.discard(_path(retired.key, "yaml"))  # one that stays does no harm: the record counts

    def _asked_before(self, request_id: str) -> list[tuple[str, str]]:
        with self._lock:
            return [(digest, did) for _, digest, did in self._requests(request_id)]

    def _requests(self, request_id: str) -> Iterator[tuple[StoredConfiguration, str, str]]:
        """(what it changed, its digest, what it did) of the requests with this id."""
        for each in self._records.values() if request_id else ():
            if each is not None and each.request_id == request_id:
                yield each, each.request_digest, f"added {each.reference}"
            if each is not None and each.retire_request_id == request_id:
                yield each, each.retire_request_digest, f"retired {each.reference}"

    # ---- files

    def _put(self, key: Key, suffix: str, data: bytes) -> None:
        self._files.put(_path(key, suffix), data, _RECORD)
        self._files.fsync_folder(CONFIGURATIONS, _RECORD)

    def _make_folder(self) -> None:
        if not self._has_folder:
            if not self._files.exists(CONFIGURATIONS):
                self._files.mkdir(CONFIGURATIONS, _RECORD)
            self._files.fsync_folder("", _RECORD)
            self._has_folder = True

    def _load(self) -> None:
        if not self._files.exists(CONFIGURATIONS):
            return
        self._files.fsync_folder(CONFIGURATIONS)  # a process that was killed may not have come to it
        found = [match for name in self._files.list(CONFIGURATIONS) if (match := _FILE.fullmatch(name))]
        for match in found:
            if match[3] == "json":
                key = ConfigurationKind(match[1]), match[2]
                self._records[key] = self._read(key)
        for match in found:
            if match[3] == "yaml" and (ConfigurationKind(match[1]), match[2]) not in self._records:
                self._files.discard(f"{CONFIGURATIONS}/{match[0]}")  # a content that never got its record

    def _read(self, key: Key) -> StoredConfiguration | None:
        try:
            found = decode(self._files.read(_path(key, "json"), records.MAX_RECORD_BYTES))
            if found.key == key:
                return found
        except (DamagedRecord, PolyheadError, OSError, KeyError, TypeError, ValueError):
            pass
        logger.warning("the record of a stored configuration is damaged: %s %s", key[0].value, key[1])
        return None


def encode(stored: StoredConfiguration) -> bytes:
    """Its record."""
    return records.encode(_RECORD, _to_plain(stored))


def decode(record: bytes) -> StoredConfiguration:
    """DamagedRecord, KeyError, TypeError or ValueError for what is none."""
    plain = records.decode(_RECORD, record)
    return StoredConfiguration(**{**plain, "kind": ConfigurationKind(plain["kind"])})


def _path(key: Key, suffix: str) -> str:
    return f"{CONFIGURATIONS}/{key[0].value}--{key[1]}.{suffix}"


def _to_plain(stored: StoredConfiguration) -> dict[str, Any]:
    return {**dataclasses.asdict(stored), "kind": stored.kind.value}
