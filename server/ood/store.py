"""Out-of-distribution fits on disk, in the folder of the head store: versions that only grow, and survive every swap and restart.

    ood/<name>@<version>.safetensors    the numbers, float64
    ood/<name>@<version>.json           the record, with the SHA-256 of the numbers; a fit exists once this is there

Knows records and bytes, not which trunk is served. The head store's lock keeps other processes out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import threading
from dataclasses import dataclass
from typing import Any

import safetensors.numpy

from polyhead.heads.format.errors import AlreadyExists, DataLoss, NotFound, PolyheadError, ResourceExhausted
from polyhead.heads.format.manifest import NAME_PATTERN, check_name
from polyhead.heads.format.precision import Precision
from polyhead.heads.store import io_errors, records
from polyhead.heads.store.layout import OOD
from polyhead.heads.store.records import DamagedRecord
from polyhead.heads.store.store import HeadStore
from polyhead.server.engine.work.pooling import Pooling, PromptPooling
from polyhead.server.ood.scores import OodModel

MAX_NAMES = 64
_FILE = re.compile(rf"({NAME_PATTERN.pattern})@([1-9][0-9]{{0,8}})\.(json|safetensors)")
_KIND = "ood_fit"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OodFit:
    """One version of one fit. Never changes."""

    name: str
    version: int
    trunk_id: str
    precision: Precision  # of the trunk that it was made with
    pooling: PromptPooling
    num_prompts: int
    shrinkage: float
    mean_score: float  # of the prompts it was made from
    std_score: float
    created_at: float  # unix seconds
    request_id: str = ""
    sha256: str = ""  # of the numbers' file
    num_bytes: int = 0
    request_digest: str = ""  # names all that the request asked for; older stores hold none

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


class OodStore:
    """Methods block on the disk: call them from a worker thread. Thread-safe. ResourceExhausted, StoreIoError."""

    def __init__(self, store: HeadStore, keep_versions: int) -> None:
        """Read every record. One that is damaged is known by its number alone: its fit cannot be used, nor its number given again."""
        self._files = store.files
        self._request_ids = store.request_ids  # of all that is in the folder
        self._request_ids.add(self._asked_before)
        self._keep_versions = keep_versions
        self._lock = threading.Lock()
        self._fits: dict[tuple[str, int], OodFit | None] = {}
        self._highest: dict[str, int] = {}
        self._has_folder = False  # durably
        with io_errors.plain_errors("could not read the out-of-distribution fits"):
            self._load()

    def listing(self) -> list[OodFit]:
        """By name, oldest version first."""
        with self._lock:
            fits = [fit for fit in self._fits.values() if fit is not None]
        return sorted(fits, key=lambda fit: (fit.name, fit.version))

    def get(self, name: str, version: int, field: str) -> OodFit:
        """Version 0 is the newest. NotFound; DataLoss if its record is damaged."""
        with self._lock:
            versions = [known for other, known in self._fits if other == name]
            wanted = version or max(versions, default=0)
            if wanted not in versions:
                reference = f"{name}@{version}" if version else name
                raise NotFound(f"no such out-of-distribution fit: {reference}", field=field, metadata={"name": reference})
            fit = self._fits[name, wanted]
        if fit is None:
            raise DataLoss(f"the record of the out-of-distribution fit is damaged: {name}@{wanted}\nhint: fit it again")
        return fit

    def find_request(self, request_id: str, request_digest: str) -> OodFit | None:
        """The fit that this request made: a retry gets the first answer. AlreadyExists if the id stands for another request."""
        self._request_ids.check(request_id, request_digest, "header.request_id")
        with self._lock:
            return self._of_request(request_id)

    def add(self, fit: OodFit, model: OodModel) -> OodFit:
        """Store a fit under the next number of its name; durable when it returns. A known request id gets its first answer."""
        data = safetensors.numpy.save({field.name: getattr(model, field.name) for field in dataclasses.fields(model)})
        storing = self._request_ids.storing(fit.request_id, fit.request_digest, "header.request_id")
        with storing, self._lock, io_errors.plain_errors("could not store the out-of-distribution fit"):
            if first := self._of_request(fit.request_id):
                return check_same_request(first, fit)
            self._check_room(fit.name)
            version = self._highest.get(fit.name, 0) + 1
            stored = dataclasses.replace(fit, version=version, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
            self._highest[fit.name] = version  # spent, whatever happens
            self._write(stored, data)
            self._fits[fit.name, version] = stored
            self._collect(fit.name)
            return stored

    def load(self, fit: OodFit) -> OodModel:
        """Its numbers. DataLoss if they are missing or not those that were stored."""
        return OodModel(**safetensors.numpy.load(self.content(fit)))

    def is_whole(self, fit: OodFit) -> bool:
        """Whether its numbers are there, by their size: reading them all takes long."""
        try:
            return self._files.size(_path(fit.name, fit.version, "safetensors")) == fit.num_bytes
        except (OSError, PolyheadError):
            return False

    def content(self, fit: OodFit) -> bytes:
        """The file of its numbers. DataLoss."""
        with io_errors.plain_errors("could not read the out-of-distribution fit"):
            try:
                data = self._files.read(_path(fit.name, fit.version, "safetensors"), fit.num_bytes)
            except FileNotFoundError:
                data = b""
        if hashlib.sha256(data).hexdigest() != fit.sha256:
            raise DataLoss(f"the numbers of the out-of-distribution fit are damaged: {fit.reference}\nhint: fit it again")
        return data

    def adopt(self, record: bytes, data: bytes) -> None:
        """Hold a fit of another store under the number that it has there. DataLoss if the numbers are not those of the record."""
        fit = decode(record)
        if hashlib.sha256(data).hexdigest() != fit.sha256:
            raise DataLoss(f"the numbers of the out-of-distribution fit are not those of its record: {fit.reference}")
        with self._lock, io_errors.plain_errors("could not store the out-of-distribution fit"):
            self._write(fit, data)
            self._fits[fit.name, fit.version] = fit
            self._highest[fit.name] = max(self._highest.get(fit.name, 0), fit.version)

    def forget(self, name: str, version: int) -> None:
        """Delete a fit that the other store no longer keeps; one that is not there is no error."""
        with self._lock, io_errors.plain_errors("could not delete the out-of-distribution fit"):
            if (name, version) in self._fits:
                self._delete(name, version)

    @property
    def num_bytes(self) -> int:
        """What the fits take on disk, without their records."""
        return sum(fit.num_bytes for fit in self.listing())

    # ---- files

    def _load(self) -> None:
        if not self._files.exists(OOD):
            return
        self._files.fsync_folder(OOD)  # a process that was killed may not have come to it
        names = self._files.list(OOD)
        for found in filter(None, map(_FILE.fullmatch, names)):
            name, version, suffix = found[1], int(found[2]), found[3]
            if suffix == "json":
                self._fits[name, version] = self._read(name, version)
                self._highest[name] = max(self._highest.get(name, 0), version)
        for found in filter(None, map(_FILE.fullmatch, names)):
            if (found[1], int(found[2])) not in self._fits:
                self._files.discard(f"{OOD}/{found[0]}")  # numbers that never got their record

    def _read(self, name: str, version: int) -> OodFit | None:
        try:
            fit = decode(self._files.read(_path(name, version, "json"), records.MAX_RECORD_BYTES))
            if (fit.name, fit.version) == (name, version):
                return fit
        except (DamagedRecord, PolyheadError, OSError, KeyError, TypeError, ValueError):
            pass
        log.warning("the record of an out-of-distribution fit is damaged: %s@%d", name, version)
        return None

    def _write(self, fit: OodFit, data: bytes) -> None:
        """The numbers first, durably; then the record, which makes them a fit."""
        self._make_folder()
        written = (("safetensors", data), ("json", encode(fit)))
        try:
            for suffix, content in written:
                self._files.put(_path(fit.name, fit.version, suffix), content, "ood")
                self._files.fsync_folder(OOD, "ood")
        except OSError:
            for suffix, _ in reversed(written):  # it was never acknowledged
                self._files.discard(_path(fit.name, fit.version, suffix))
            raise

    def _make_folder(self) -> None:
        if not self._has_folder:
            if not self._files.exists(OOD):
                self._files.mkdir(OOD, "ood")
            self._files.fsync_folder("", "ood")
            self._has_folder = True

    def _collect(self, name: str) -> None:
        """Forget the oldest versions of a name, the record first. What cannot be deleted now is tried again after the next fit."""
        versions = sorted(version for other, version in self._fits if other == name)
        for version in versions[: -self._keep_versions]:
            try:
                self._delete(name, version)
            except OSError as error:
                log.warning("an old out-of-distribution fit was not deleted: %s@%d (%s)", name, version, error.strerror)
                return

    def _delete(self, name: str, version: int) -> None:
        self._files.unlink(_path(name, version, "json"), "ood")
        self._files.fsync_folder(OOD, "ood")
        del self._fits[name, version]
        self._files.discard(_path(name, version, "safetensors"))

    def _check_room(self, name: str) -> None:
        check_name(name, "name")
        names = {known for known, _ in self._fits}
        if name not in names and len(names) >= MAX_NAMES:
            raise ResourceExhausted(f"there are {MAX_NAMES} names of out-of-distribution fits already: use one of them")

    def _asked_before(self, request_id: str) -> list[tuple[str, str]]:
        with self._lock:
            fit = self._of_request(request_id)
        return [] if fit is None else [(fit.request_digest, f"made {fit.reference}")]

    def _of_request(self, request_id: str) -> OodFit | None:
        return next((fit for fit in self._fits.values() if fit and request_id and fit.request_id == request_id), None)


def encode(fit: OodFit) -> bytes:
    """Its record."""
    return records.encode(_KIND, _to_plain(fit))


def decode(record: bytes) -> OodFit:
    """DamagedRecord, KeyError, TypeError or ValueError for what is none."""
    return _from_plain(records.decode(_KIND, record))


def check_same_request(first: OodFit, wanted: OodFit) -> OodFit:
    """`first`, if the request that made it asked for the same. AlreadyExists."""
    if is_answered(first, wanted.request_digest):
        return first
    asked, asks = ((fit.name, fit.pooling, fit.shrinkage, fit.num_prompts) for fit in (first, wanted))
    if asked != asks:
        raise _taken(first)
    return first


def is_answered(first: OodFit, request_digest: str) -> bool:
    """Whether `first` answers a request with this digest. False if one of them has none; AlreadyExists if they differ."""
    if not (first.request_digest and request_digest):
        return False
    if first.request_digest != request_digest:
        raise _taken(first)
    return True


def _taken(first: OodFit) -> AlreadyExists:
    return AlreadyExists(f"the request id was used for another fit: it made {first.reference}", field="header.request_id")


def _path(name: str, version: int, suffix: str) -> str:
    return f"{OOD}/{name}@{version}.{suffix}"


def _to_plain(fit: OodFit) -> dict[str, Any]:
    plain = {field.name: getattr(fit, field.name) for field in dataclasses.fields(fit) if field.name != "pooling"}
    if not fit.request_digest:
        del plain["request_digest"]  # as older servers read it
    return {**plain, "layer": fit.pooling.layer, "pooling": fit.pooling.method.value}


def _from_plain(plain: dict[str, Any]) -> OodFit:
    return OodFit(
        pooling=PromptPooling(int(plain.pop("layer")), Pooling(plain.pop("pooling"))),
        precision=Precision(plain.pop("precision")),
        **plain,
    )
