"""Versions by head name: one record file each, numbers that only grow. Knows records, not blobs and not what is active."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from polyhead.heads.format.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound
from polyhead.heads.store import layout, osio, records
from polyhead.heads.store.records import DamagedRecord, VersionRecord
from polyhead.heads.store.reserve import write_with_reserve

MAX_LABELS = 16  # of one version
MAX_LABEL_REQUESTS = 16  # of one version: a retry that comes later than that changes the labels again
_READ_LIMIT = records.MAX_RECORD_BYTES


class VersionFolder:
    """The version records in memory and on disk. The caller holds the store's lock. Methods raise OSError where they write."""

    def __init__(self, files: osio.StoreFiles) -> None:
        self._files = files
        self._records: dict[str, dict[int, VersionRecord]] = defaultdict(dict)
        self._by_request: dict[str, tuple[str, int]] = {}
        self._by_label_request: dict[str, tuple[str, int]] = {}
        self._highest: dict[str, int] = {}  # the last number given out, of each name
        self._folders: set[str] = set()
        self.damaged: dict[tuple[str, int], str] = {}  # (name, version) -> what is wrong; version 0: the high-water record

    def load(self) -> None:
        """Read every record. FailedPrecondition for a file that does not belong here or a newer format."""
        for name in self._files.list(layout.VERSIONS):
            folder = layout.name_path(name)
            self._folders.add(name)
            for file_name in self._files.list(folder):
                version = layout.parse_number(file_name)
                if version is not None:
                    self._load_version(name, version)
                elif f"{folder}/{file_name}" == layout.high_water_path(name):
                    self._load_high_water(name)
                else:
                    raise FailedPrecondition(f"an unexpected file among the versions of {name!r}: {file_name[:80]!r}")

    def _load_version(self, name: str, version: int) -> None:
        self._highest[name] = max(self._highest.get(name, 0), version)
        try:
            record = records.decode_version(self._files.read(layout.version_path(name, version), _READ_LIMIT))
            if (record.name, record.version) != (name, version):
                raise DamagedRecord("the record is another version's")
        except DamagedRecord as damage:
            self.damaged[name, version] = str(damage)
            return
        self._keep(record)

    def _load_high_water(self, name: str) -> None:
        try:
            content = records.decode("high_water", self._files.read(layout.high_water_path(name), _READ_LIMIT))
            highest = int(content["highest"])
        except (DamagedRecord, KeyError, TypeError, ValueError):
            self.damaged[name, 0] = "the record of the last version number is torn or damaged"
            return
        self._highest[name] = max(self._highest.get(name, 0), highest)

    def names(self) -> list[str]:
        return sorted(name for name, versions in self._records.items() if versions)

    def of(self, name: str) -> list[VersionRecord]:
        """Oldest first. NotFound for a name without versions."""
        layout.name_path(name)
        versions = self._records.get(name)
        if not versions:
            raise NotFound(f"no such head: {name!r}", field="name")
        return [versions[version] for version in sorted(versions)]

    def all(self) -> list[VersionRecord]:
        return [record for name in self.names() for record in self.of(name)]

    def get(self, name: str, version: int) -> VersionRecord:
        """NotFound; DataLoss if its record is damaged."""
        layout.version_path(name, version)
        if (name, version) in self.damaged:
            raise DataLoss(f"{name}@{version}: {self.damaged[name, version]}")
        record = self._records.get(name, {}).get(version)
        if record is None:
            is_spent = version <= self._highest.get(name, 0)
            hint = "\nhint: it is no longer stored, and its number is never used again" if is_spent else ""
            raise NotFound(f"no such head version: {name}@{version}{hint}", field="name")
        return record

    def spent(self) -> dict[str, int]:
        """The last number of each name whose last version was deleted."""
        return {
            name: highest
            for name, highest in self._highest.items()
            if highest not in self._records.get(name, {}) and not {(name, highest), (name, 0)} & self.damaged.keys()
        }

    def spend(self, name: str, version: int) -> None:
        """From now on no version of this name gets this number or a lower one. Durable when it returns; after an OSError perhaps not."""
        if version > self._highest.get(name, 0):
            self._make_folder(name)
            self._write_high_water(name, version)
            self._highest[name] = version

    def built_on(self, name: str, version: int) -> list[str]:
        """References of the LoRA heads whose base is this version."""
        base = f"{name}@{version}"
        return [f"{each.name}@{each.version}" for each in self.all() if each.manifest.lora is not None and each.manifest.base == base]

    def find_request(self, request_id: str) -> VersionRecord | None:
        """The version that a push with this request id made."""
        where = self._by_request.get(request_id) if request_id else None
        return self._records[where[0]][where[1]] if where else None

    def find_label_request(self, request_id: str) -> VersionRecord | None:
        """The version whose labels this request changed, as it is now."""
        where = self._by_label_request.get(request_id) if request_id else None
        return self._records[where[0]][where[1]] if where else None

    def retried(self, wanted: VersionRecord) -> VersionRecord | None:
        """The first answer to `wanted.request_id`. AlreadyExists if that was for other content, which digests of both requests say."""
        first = self.find_request(wanted.request_id)
        if first and first.request_digest and first.request_digest == wanted.request_digest:
            return first
        if first and (first.name, first.digest, first.manifest) != (wanted.name, wanted.digest, wanted.manifest):
            raise AlreadyExists(f"the request id was used for another push: it made {first.name}@{first.version}", field="request_id")
        return first

    def add(self, record: VersionRecord) -> VersionRecord:
        """Write a record under the next number of its name. After an OSError the number is spent, and nothing else changed."""
        name = record.name
        layout.name_path(name)
        if (name, 0) in self.damaged:
            raise DataLoss(f"{name}: {self.damaged[name, 0]}")
        numbered = dataclasses.replace(record, version=self._highest.get(name, 0) + 1)
        data = records.encode_version(numbered)
        self._make_folder(name)
        self._highest[name] = numbered.version
        self._write(numbered, data)
        self._keep(numbered)
        return numbered

    def _make_folder(self, name: str) -> None:
        if name in self._folders:
            return
        if not self._files.exists(layout.name_path(name)):
            self._files.mkdir(layout.name_path(name), "name")
        self._files.fsync_folder(layout.VERSIONS, "name")
        self._folders.add(name)

    def _write(self, record: VersionRecord, data: bytes, *, is_new: bool = True) -> None:
        path = layout.version_path(record.name, record.version)
        try:
            self._files.put(path, data, "version", is_new=is_new)
            self._files.fsync_folder(layout.name_path(record.name), "version")
        except FileExistsError:
            raise  # another server's
        except OSError:
            self._files.discard(path)  # it may be there, but it was never acknowledged
            raise

    def adopt(self, record: VersionRecord) -> None:
        """Write a record under the number that another store gave it, in place of a damaged one. OSError: no version was added."""
        data = records.encode_version(record)
        self._make_folder(record.name)
        self._write(record, data, is_new=(record.name, record.version) not in self.damaged)
        self.damaged.pop((record.name, record.version), None)
        self._highest[record.name] = max(self._highest.get(record.name, 0), record.version)
        self._keep(record)

    def relabel(self, record: VersionRecord, labels: tuple[str, ...], request: tuple[str, str] = ("", "")) -> VersionRecord:
        """Replace a record by one with other labels. `request` is the id and the digest of who asked; the last 16 are remembered."""
        requests = (*record.label_requests, request)[-MAX_LABEL_REQUESTS:] if request[0] else record.label_requests
        return self.exchange(record, dataclasses.replace(record, labels=labels, label_requests=requests))

    def exchange(self, record: VersionRecord, changed: VersionRecord) -> VersionRecord:
        """Replace a record by one of the same version."""
        path, data = layout.version_path(record.name, record.version), records.encode_version(changed)
        try:  # also on a full disk: without its labels a version can be deleted
            write_with_reserve(self._files, lambda: self._files.put(path, data, "label"))
        except OSError:
            if self._reads(changed, data):  # the rename reports an error after it happened
                self._exchange(record, changed)
            raise
        self._exchange(record, changed)
        self._files.fsync_folder(layout.name_path(record.name), "label")
        return changed

    def _reads(self, record: VersionRecord, data: bytes) -> bool:
        try:
            return self._files.read(layout.version_path(record.name, record.version), _READ_LIMIT) == data
        except (OSError, FailedPrecondition):
            return False

    def _exchange(self, old: VersionRecord, new: VersionRecord) -> None:
        self._forget_requests(old)
        self._keep(new)

    def delete(self, name: str, version: int) -> None:
        """Unlink a record, damaged or not, durably. The number stays spent: where no higher one has a record, the last one given out,
        which a failed push may have left without a record, is written down first."""
        recorded = {*self._records.get(name, {}), *(number for own, number in self.damaged if own == name)}
        if version == max(recorded):
            self._write_high_water(name, self._highest[name])
        path = layout.version_path(name, version)
        try:
            self._files.unlink(path, "version")
        finally:
            if not self._files.exists(path):  # else a version without a record could still be activated
                self._forget(name, version)
        self._files.fsync_folder(layout.name_path(name), "version_unlink")

    def _write_high_water(self, name: str, version: int) -> None:
        content = records.encode("high_water", {"highest": version, "name": name})
        write_with_reserve(self._files, lambda: self._files.put(layout.high_water_path(name), content, "high_water"))
        self._files.fsync_folder(layout.name_path(name), "high_water")

    def folders(self) -> list[str]:
        """The folder of every name, also of names without versions."""
        return [layout.name_path(name) for name in sorted(self._folders)]

    def _forget(self, name: str, version: int) -> None:
        self.damaged.pop((name, version), None)
        record = self._records[name].pop(version, None)
        if record:
            self._forget_requests(record)

    def _forget_requests(self, record: VersionRecord) -> None:
        self._by_request.pop(record.request_id, None)
        for request_id, _ in record.label_requests:
            self._by_label_request.pop(request_id, None)

    def _keep(self, record: VersionRecord) -> None:
        self._records[record.name][record.version] = record
        if record.request_id:
            self._by_request[record.request_id] = (record.name, record.version)
        for request_id, _ in record.label_requests:
            self._by_label_request[request_id] = (record.name, record.version)
