"""Head files and their versions: what is pushed is staged, published under its SHA-256, and given a number of its name."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterable, Mapping

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, InvalidArgument
from polyhead.heads.format.lora import adapted_digest
from polyhead.heads.format.manifest import HeadManifest, check_name
from polyhead.heads.store import layout, records
from polyhead.heads.store.blob_io import OpenBlob
from polyhead.heads.store.delta import rebuild
from polyhead.heads.store.parts import StoreParts
from polyhead.heads.store.records import VersionRecord
from polyhead.heads.store.staging import Staging
from polyhead.heads.store.versions import MAX_LABELS


class HeadVersions(StoreParts):
    """Pushes and versions of a store. Nothing here changes what is active."""

    def begin_push(self, declared_bytes: int, declared_sha256: str) -> Staging:
        """Begin to receive a head file. InvalidArgument; ResourceExhausted when too many pushes are under way."""
        return self._blobs.begin(declared_bytes, declared_sha256)

    def open_blob(self, digest: str) -> OpenBlob:
        """A head file held open: deleting its versions does not take it away. DataLoss if it is missing."""
        return self._blobs.open(digest)

    def rebuild(self, base: OpenBlob, sent: Staging, num_bytes: int = 0, sha256: str = "") -> Staging:
        """The whole file of a push that sent only what differs from `base`, verified; see `heads/store/delta.py`. Both stay open.

        `num_bytes` and `sha256` are what the pusher says of the whole file; 0 and "" if it does not know.
        """
        return rebuild(base, sent, self._blobs.begin_rebuilt, num_bytes, sha256)

    def put_blob(self, data: bytes | bytearray | memoryview) -> str:
        """Store a head file that is in memory; its digest. The same steps as a push."""
        with self.begin_push(memoryview(data).nbytes, hashlib.sha256(data).hexdigest()) as staging:
            staging.write(data)
            return staging.finish()

    def discard_blob(self, digest: str) -> None:
        """A finished push will get no version: its blob goes unless something else holds it."""
        layout.blob_path(digest)
        self._blobs.give_up(digest)

    def read_blob(self, digest: str) -> memoryview:
        """The bytes of a head file in private memory, never a mapped file. DataLoss if it is missing or its SHA-256 is another one.

        There is a pause point after each slice.
        """
        return self._blobs.read(digest)

    def add_version(
        self,
        name: str,
        digest: str,
        manifest: HeadManifest,
        *,
        labels: Iterable[str] = (),
        request_id: str = "",
        metrics: Mapping[str, float] | None = None,
        sent_sha256: str = "",
        request_digest: str = "",
    ) -> VersionRecord:
        """Give a published blob the next version number of `name`; durable when it returns. `digest` is the blob's.

        The same request id with the same request digest returns the first record, with another one it is AlreadyExists; without
        digests name, blob and manifest decide.
        InvalidArgument; FailedPrecondition for another trunk or a blob that was never pushed. For a LoRA head also NotFound
        or FailedPrecondition for its base.
        """
        manifest.validate()
        if manifest.trunk_id != self.trunk_id:
            theirs, ours = manifest.trunk_id[:12], self.trunk_id[:12]
            problem = f"the head belongs to another trunk: {theirs}... is not {ours}..."
            raise FailedPrecondition(problem, field="manifest.trunk_id")
        layout.name_path(name)
        wanted = VersionRecord(
            name=name,
            version=0,
            digest=digest,
            num_bytes=0,
            manifest=manifest,
            created_at=time.time(),
            labels=tuple(sorted({check_name(label, "labels") for label in labels})),
            request_id=records.check_request_id(request_id),
            metrics=records.check_metrics(metrics),
            adapter_sha256=digest if manifest.lora is not None else "",
            sent_sha256=sent_sha256,
            request_digest=request_digest,
        )
        with self.request_ids.storing(request_id, request_digest), self._guard("could not store the head version"):
            wanted = dataclasses.replace(wanted, digest=self._digest_of(digest, manifest))
            if first := self._versions.retried(wanted):
                self._blobs.give_up(digest)
                return first
            record = self._versions.add(dataclasses.replace(wanted, num_bytes=self._held_bytes(digest)))
            self._blobs.take(digest)
            return record

    def digest_of(self, blob: str, manifest: HeadManifest) -> str:
        """What a version with this blob and manifest computes: names it before there is one. As `add_version`."""
        with self._lock:
            return self._digest_of(blob, manifest)

    def _digest_of(self, blob: str, manifest: HeadManifest) -> str:
        if manifest.lora is None:
            return blob
        base = self._versions.get(*manifest.base_version())
        if base.manifest.lora is not None:
            hint = f"its own base is {base.manifest.base}"
            problem = f"a LoRA head cannot be built on another one: {manifest.base}\nhint: {hint}"
            raise FailedPrecondition(problem, field="manifest.base")
        if base.manifest.output is not manifest.output:
            theirs, ours = base.manifest.output.value, manifest.output.value
            raise FailedPrecondition(f"a LoRA head has the output of its base: {theirs!r}, not {ours!r}", field="manifest.output")
        return adapted_digest(blob, base.digest, manifest.lora)

    def _held_bytes(self, digest: str) -> int:
        layout.blob_path(digest)
        if not self._blobs.is_held(digest):
            raise FailedPrecondition(f"no such blob, push it first: {digest[:12]}...")
        try:
            return self._blobs.num_bytes(digest)
        except FileNotFoundError:
            raise DataLoss(f"the stored head is missing: {digest[:12]}...") from None

    def names(self) -> list[str]:
        """Every head name that has a version, sorted."""
        with self._lock:
            return self._versions.names()

    def versions(self, name: str) -> list[VersionRecord]:
        """The versions of a name, oldest first. InvalidArgument for a bad name, NotFound for an unknown one."""
        with self._lock:
            return self._versions.of(name)

    def get(self, name: str, version: int) -> VersionRecord:
        """InvalidArgument for a bad name or number, NotFound, DataLoss if the record is damaged."""
        with self._lock:
            return self._versions.get(name, version)

    def spent(self) -> dict[str, int]:
        """The last number of each name whose last version was deleted: it is never used again."""
        with self._lock:
            return self._versions.spent()

    def version_of_request(self, request_id: str) -> VersionRecord | None:
        """The version that a push with this request id made: a retry can be answered before its bytes are read."""
        with self._lock:
            return self._versions.find_request(request_id)

    def label(
        self,
        name: str,
        version: int,
        *,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        request_id: str = "",
        request_digest: str = "",
    ) -> VersionRecord:
        """Add labels and take others away, durably; the version as it is then. A labelled version is never collected.

        A label that is there already, or is not there to be taken away, is no error. A request id that changed labels before changes
        nothing again. InvalidArgument for a bad label or more than 16; NotFound.
        """
        added = {check_name(label, "add") for label in add}
        removed = {check_name(label, "remove") for label in remove}
        records.check_request_id(request_id)
        with self.request_ids.storing(request_id, request_digest), self._guard("could not label the head version"):
            if first := self._versions.find_label_request(request_id):
                return first
            record = self._versions.get(name, version)
            labels = tuple(sorted({*record.labels, *added} - removed))
            if len(labels) > MAX_LABELS:
                raise InvalidArgument(f"a version has at most {MAX_LABELS} labels: {len(labels)}", field="add")
            return self._versions.relabel(record, labels, (request_id, request_digest))
