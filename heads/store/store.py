"""The head store: a small, crash-safe database of files. What is pushed, what is active, and what was active before.

Knows nothing of torch, of gRPC, or of what is inside a head file, and imports none of it: its crash tests start at once.
kill -9 at any moment leaves exactly the old or exactly the new active set, and what was acknowledged stays.
`heads/store/layout.py` draws the folder, `heads/store/osio.py` makes the system calls, `heads/store/failpoints.py` names the moments.

    with HeadStore.open("store", trunk_id) as store:
        with store.begin_push(len(data), sha256) as staging:
            staging.write(data)
            digest = staging.finish()
        version = store.add_version("policy", digest, manifest).version
        store.commit_generation({"policy": version}, parent=None)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any

from polyhead.heads.format.errors import AlreadyExists, Conflict, DataLoss, FailedPrecondition, InvalidArgument, PolyheadError
from polyhead.heads.format.lora import adapted_digest
from polyhead.heads.format.manifest import HeadManifest, check_name
from polyhead.heads.format.pauses import pausing
from polyhead.heads.store import layout, osio, records
from polyhead.heads.store.blobs import BlobFolder, OpenBlob, Staging
from polyhead.heads.store.damage import Inspector, StoreDamage
from polyhead.heads.store.delta import rebuild
from polyhead.heads.store.generations import CommitUncertain, GenerationFolder
from polyhead.heads.store.identity import identify, read_trunk_id
from polyhead.heads.store.osio import OsRecord, StoreFiles, StoreIoError, StoreLocked, StoreTaken, UnsafeFile
from polyhead.heads.store.pack import Retention
from polyhead.heads.store.records import GenerationRecord, VersionRecord
from polyhead.heads.store.reserve import write_reserve
from polyhead.heads.store.scrub import Scrub
from polyhead.heads.store.versions import MAX_LABELS, VersionFolder

__all__ = [
    "CommitUncertain",
    "GenerationRecord",
    "HeadStore",
    "OpenBlob",
    "PastGeneration",
    "Staging",
    "StoreDamage",
    "StoreIoError",
    "StoreLocked",
    "StoreTaken",
    "UnsafeFile",
    "VersionRecord",
]

@dataclass(frozen=True, slots=True)
class PastGeneration:
    """A generation as the history shows it."""

    record: GenerationRecord
    gone: tuple[str, ...]  # of its versions those that are deleted or damaged: a rollback cannot restore it
    same_as: int  # the first generation with the same heads; 0 if it is this one


_TRUNK_ID = re.compile(r"[0-9a-f]{64}")


class HeadStore:
    """One store folder, locked by this process. Thread-safe; every method blocks on the disk, so call it from a worker thread.

    Every method may raise ResourceExhausted (a full disk) and StoreIoError (the operating system failed); `commit_generation`
    and `repair_to` also CommitUncertain, after which the process has to end.
    """

    def __init__(self, path: str, trunk_id: str, files: StoreFiles, max_staged: int) -> None:
        """Use `open`."""
        self.path = path
        self.trunk_id = trunk_id
        self.damage: StoreDamage | None = None  # of the active set: not None means that nothing may be served
        self.lost: StoreDamage | None = None  # found by `look`: what is served would not come back after a restart
        self.other_damage: tuple[StoreDamage, ...] = ()  # of versions and generations that are not served, or not from the disk
        self._files = files
        self._lock = threading.RLock()
        self._blobs = BlobFolder(files, self._lock, max_staged)
        self._versions = VersionFolder(files)
        self._generations = GenerationFolder(files)
        self._inspector = Inspector(path, self._blobs, self._versions, self._generations)
        self.scrub = Scrub(self._blobs)

    @classmethod
    def open(cls, path: str | os.PathLike[str], trunk_id: str, *, os_record: OsRecord | None = None, max_staged: int = 4) -> HeadStore:
        """Open or create the store of one trunk: lock it, clear what a crash left, read every record.

        At most `max_staged` pushes run at the same time. `os_record` collects (operation, relative name) of every system call.
        StoreLocked; UnsafeFile (others may write to it, links, devices); FailedPrecondition (another trunk's store, no store, a
        newer format); DataLoss (its identity is damaged). Look at `damage` before serving.
        """
        if not _TRUNK_ID.fullmatch(trunk_id):
            raise InvalidArgument(f"trunk_id must be 64 lower-case hex digits: {trunk_id[:80]!r}", field="trunk_id")
        absolute = os.path.abspath(path)
        with osio.plain_errors("could not open the store"):
            files = StoreFiles.open(absolute, os_record)
            try:
                files.failpoint_prefix = "recovery."
                files.lock(layout.LOCK)
                identify(files, trunk_id)
                store = cls(absolute, trunk_id, files, max_staged)
                store._recover()
            except BaseException:
                files.close()
                raise
            files.failpoint_prefix = ""
        with contextlib.suppress(PolyheadError):  # a full disk is no reason not to start: the next start tries again
            store.compact()
        return store

    @staticmethod
    def read_trunk_id(path: str | os.PathLike[str]) -> str:
        """Which trunk a store belongs to, without opening it: for repairs from the command line."""
        with osio.plain_errors("could not read the store"):
            if not os.path.isdir(path):
                raise FailedPrecondition("there is no store folder at the given place")
            files = StoreFiles.open(os.path.abspath(path))
            try:
                return read_trunk_id(files)
            finally:
                files.close()

    @property
    def files(self) -> StoreFiles:
        """The locked folder, for what is kept beside the heads in folders of its own."""
        return self._files

    def close(self) -> None:
        """Release the lock; may be called twice."""
        with self._lock:
            self._files.close()

    def __enter__(self) -> HeadStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- recovery

    def _recover(self) -> None:
        self._blobs.load()
        self._versions.load()
        self._generations.load()
        self._make_durable()
        for record in self._versions.all():
            self._blobs.count_loaded(record.blob)
        if not self._versions.damaged:  # an unreadable record may refer to any blob
            self._blobs.remove_orphans()
        self.damage = self._inspector.find_active_damage()
        self.other_damage = tuple(self._inspector.find_other_damage())
        self._write_reserve()

    def _make_durable(self) -> None:
        """What was found may have been renamed by a process that was killed before it could fsync the folder: a power cut
        after this start would take it back, and the generation being served with it."""
        for folder in ("", layout.BLOBS, layout.VERSIONS, *self._versions.folders(), layout.GENERATIONS):
            self._files.fsync_folder(folder, "found")

    def _write_reserve(self) -> None:
        try:
            write_reserve(self._files)
        except OSError as error:
            if not osio.is_disk_full(error):
                raise

    def verify_active(self) -> StoreDamage | None:
        """Read and hash every blob of the active set; what is wrong, or None. Sets `damage`. Call it before serving."""
        with self._guard("could not verify the active set"):
            self.damage = self._inspector.find_active_damage(is_thorough=True)
            return self.damage

    def repair_to(self, number: int, *, request_id: str = "", request_digest: str = "") -> GenerationRecord:
        """Get out of a damaged active set: a new generation equal to an intact one; 0 means no heads at all.

        NotFound, DataLoss if that generation is damaged, too.
        """
        with self._guard("could not repair the store"):
            self._check_request(request_id, request_digest)
            if first := self._generations.find_request(request_id):
                return first
            heads = self._generations.get(number).heads if number else {}
            note = f"repair: back to generation {number}"
            record = self._next_generation(heads, request_id, number or None, note, None, request_digest)
            self._check_heads(record.heads)
            self._generations.commit(record)
            self.damage = self._inspector.find_active_damage()
            self.other_damage = tuple(self._inspector.find_other_damage())
            return record

    def look(self) -> None:
        """Look at the folder, the lock and the files of the active set, and what `scrub` found. Sets `lost` and `other_damage`.

        Reads no weights that were read before: call it now and then while serving.
        """
        with self._lock:
            self.lost = self._inspector.find_lost(self._files)
            if self.lost is None:
                with contextlib.suppress(OSError):
                    self.other_damage = (*self._inspector.find_rotten(), *self._inspector.find_other_damage())

    def verify(self, heads: Mapping[str, int]) -> None:
        """Read the bytes of these versions unless they were read since their files last changed: what a commit of them would do while
        everybody else waits. DataLoss; NotFound."""
        blobs = []
        with self._lock:
            for record in (self._versions.get(*head) for head in heads.items()):
                blobs.append(record.blob)
                if record.manifest.lora is not None:
                    blobs.append(self._versions.get(*record.manifest.base_version()).blob)
        for blob in blobs:
            self._blobs.verify(blob)
        with self._guard("could not verify the heads"):
            self._check_heads(heads)

    # ---- push

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
        """Store a head file that is already here; its digest. The same road as a push."""
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

    # ---- versions

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
        with self._guard("could not store the head version"):
            self._check_request(request_id, request_digest)
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

    def check_request(self, request_id: str, request_digest: str) -> None:
        """AlreadyExists if the id stands for another request, whatever that one did. A record without a digest says nothing here."""
        with self._lock:
            self._check_request(request_id, request_digest)

    def _check_request(self, request_id: str, request_digest: str) -> None:
        for known, made in self._requests(request_id):
            if known and request_digest and known != request_digest:
                raise AlreadyExists(f"the request id was used for another request: it made {made}", field="request_id")

    def _requests(self, request_id: str) -> Iterator[tuple[str, str]]:
        """(digest, what it made) of the requests with this id."""
        if version := self._versions.find_request(request_id):
            yield version.request_digest, f"{version.name}@{version.version}"
        if generation := self._generations.find_request(request_id):
            yield generation.request_digest, f"generation {generation.number}"
        if labelled := self._versions.find_label_request(request_id):
            yield dict(labelled.label_requests)[request_id], f"labels of {labelled.name}@{labelled.version}"

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
        with self._guard("could not label the head version"):
            self._check_request(request_id, request_digest)
            if first := self._versions.find_label_request(request_id):
                return first
            record = self._versions.get(name, version)
            labels = tuple(sorted({*record.labels, *added} - removed))
            if len(labels) > MAX_LABELS:
                raise InvalidArgument(f"a version has at most {MAX_LABELS} labels: {len(labels)}", field="add")
            return self._versions.relabel(record, labels, (request_id, request_digest))

    def delete_version(self, name: str, version: int, *, force: bool = False) -> None:
        """Delete a version, and its blob after the last version that refers to it. Its number is never used again.

        FailedPrecondition if it is active or a LoRA head is built on it; without `force` also if it is labelled or in the
        generation before. NotFound.
        """
        with self._guard("could not delete the head version"):
            self._refuse_while_damaged()
            layout.version_path(name, version)
            if (name, version) not in self._versions.damaged:
                self._versions.get(name, version)
            if reason := self._kept_because(name, version, is_forced=force):
                raise FailedPrecondition(f"{name}@{version} cannot be deleted: it is {reason}")
            self._delete(name, version)
            self._write_reserve()
            self.other_damage = tuple(self._inspector.find_other_damage())

    def collect(self, keep_versions: int, also_keep: Collection[tuple[str, int]] = ()) -> list[VersionRecord]:
        """Delete all but the newest `keep_versions` of each name; what was deleted.

        Active versions, those of the generation before, labelled ones and those in `also_keep` stay, too. FailedPrecondition while
        `damage` is set.
        """
        if isinstance(keep_versions, bool) or not isinstance(keep_versions, int) or keep_versions < 1:
            raise InvalidArgument(f"keep_versions must be at least 1: {keep_versions}", field="keep_versions")
        with self._guard("could not delete old head versions"):
            self._refuse_while_damaged()
            old = [record for name in self._versions.names() for record in self._versions.of(name)[:-keep_versions]]
            free = [record for record in old if (record.name, record.version) not in also_keep]
            deleted = [record for record in free if not self._kept_because(record.name, record.version, is_forced=False)]
            for record in deleted:
                self._delete(record.name, record.version)
            self._write_reserve()
            if not self._versions.damaged:
                self._blobs.remove_orphans()
            return deleted

    def _kept_because(self, name: str, version: int, *, is_forced: bool) -> str:
        """Why a version has to stay; empty if it may go."""
        current = self._generations.current
        if current and current.heads.get(name) == version:
            return f"active in generation {current.number}"
        if dependants := self._versions.built_on(name, version):
            more = f" and {len(dependants) - 5} more" if len(dependants) > 5 else ""
            return f"what LoRA heads are built on: {', '.join(dependants[:5])}{more}"
        if is_forced or (name, version) in self._versions.damaged:
            return ""
        for generation in self._rollback_targets():
            if generation.heads.get(name) == version:
                return f"what a rollback to generation {generation.number} would serve"
        labels = self._versions.get(name, version).labels
        return f"labelled {labels[0]!r}\nhint: take its labels away first: {', '.join(labels)}" if labels else ""

    def _rollback_targets(self) -> list[GenerationRecord]:
        """The generation before the current one, and the parent, which a rollback goes to by default."""
        current = self._generations.current
        if current is None:
            return []
        found = (self._generations.before_current(), self._generations.find(current.parent))
        return [generation for generation in found if generation is not None]

    def _delete(self, name: str, version: int) -> None:
        blob = "" if (name, version) in self._versions.damaged else self._versions.get(name, version).blob
        self._versions.delete(name, version)
        if blob:
            self._blobs.release(blob)

    # ---- generations

    @property
    def current(self) -> GenerationRecord | None:
        """The active set; None before the first activation. DataLoss if it is damaged. Takes no lock and does not block."""
        if damage := self.damage:
            raise DataLoss(damage.what)
        return self._generations.current

    def generation(self, number: int) -> GenerationRecord:
        """NotFound; DataLoss if its record is damaged."""
        with self._lock:
            return self._generations.get(number)

    def history(self) -> list[GenerationRecord]:
        """Every readable generation, newest first."""
        with self._lock:
            return self._generations.history()

    def past(self, generations: Sequence[GenerationRecord]) -> list[PastGeneration]:
        """What became of these generations: which of their versions are gone, and which earlier generation had the same heads."""
        found: dict[tuple[str, int], bool] = {}
        with self._guard("could not look at the history"):
            for generation in generations:
                for head in generation.heads.items():
                    if head not in found:
                        found[head] = bool(self._inspector.find_problem(*head))
            return [self._past(generation, found) for generation in generations]

    def _past(self, generation: GenerationRecord, is_gone: Mapping[tuple[str, int], bool]) -> PastGeneration:
        gone = tuple(f"{name}@{version}" for name, version in sorted(generation.heads.items()) if is_gone[name, version])
        return PastGeneration(generation, gone, self._generations.same_as(generation))

    def generation_of_request(self, request_id: str) -> GenerationRecord | None:
        """The generation that this request id made. Look here before merging a change into the current set:
        a retry merged into a newer set asks for other heads, and would be taken for another request."""
        with self._lock:
            return self._generations.find_request(request_id)

    def commit_generation(
        self,
        heads: Mapping[str, int],
        *,
        request_id: str = "",
        expected_generation: int | None = None,
        parent: int | None,
        note: str = "",
        answer: Mapping[str, Any] | None = None,
        request_digest: str = "",
    ) -> GenerationRecord:
        """Make `heads` the active set, durably: the commit point. The caller flips its pointer and answers after it returns.

        A known request id returns its first record before `expected_generation` is looked at; with another request digest it is
        AlreadyExists, without digests other heads are.
        `expected_generation` 0 expects that nothing was ever active; Conflict (metadata `current_generation`) if the active set
        has moved on. NotFound for an unknown version, DataLoss for a damaged one, FailedPrecondition while `damage` is set.
        After all these nothing has changed; after CommitUncertain nobody knows: end the process.
        """
        with self._guard("could not store the activation"):
            record = self._next_generation(heads, request_id, parent, note, answer, request_digest)
            self._check_request(request_id, request_digest)
            if first := self._generations.find_request(request_id):
                if not (first.request_digest and request_digest) and first.heads != record.heads:
                    problem = f"the request id was used for other heads: it made generation {first.number}"
                    raise AlreadyExists(problem, field="request_id")
                return first
            self._refuse_while_damaged()
            current = self._generations.highest
            if expected_generation is not None and expected_generation != current:
                raise Conflict(
                    f"the active set has moved on: generation {current}, not {expected_generation}",
                    metadata={"current_generation": str(current)},
                )
            if not record.heads:
                raise InvalidArgument("an active set needs at least one head", field="heads")
            self._check_heads(record.heads)
            self._generations.commit(record)
            return record

    def _next_generation(
        self,
        heads: Mapping[str, int],
        request_id: str,
        parent: int | None,
        note: str,
        answer: Mapping[str, Any] | None,
        request_digest: str,
    ) -> GenerationRecord:
        if parent is not None and not 1 <= parent <= self._generations.highest:
            raise InvalidArgument(f"no such parent generation: {parent}", field="parent")
        return GenerationRecord(
            number=self._generations.highest + 1,
            parent=parent,
            heads=MappingProxyType(dict(heads)),
            created_at=time.time(),
            request_id=records.check_request_id(request_id),
            note=records.check_note(note),
            answer=None if answer is None else MappingProxyType(dict(answer)),
            request_digest=request_digest,
            previous=self._generations.sha256_of(self._generations.highest),
        )

    def _check_heads(self, heads: Mapping[str, int]) -> None:
        for name, version in heads.items():
            self._versions.get(name, version)
            if problem := self._inspector.find_problem(name, version, is_thorough=True):
                raise DataLoss(f"cannot be activated: {problem}\nhint: push the same head again: that repairs it")

    def _refuse_while_damaged(self) -> None:
        if self.damage:
            raise FailedPrecondition(f"the store has to be repaired first: {self.damage.what}")

    def compact(self, limits: Retention | None = None) -> int:
        """Pack old generations into one file and drop those that need not be kept; how many files are gone for it.

        Does nothing while `damage` is set, and seldom anything at all: see `Retention`.
        """
        with self._guard("could not pack the history"):
            return 0 if self.damage else self._generations.compact(limits or Retention(), time.time())

    # ---- the rest

    def disk_space(self) -> tuple[int, int]:
        """(bytes free, bytes in all) of the file system that the store is on; also when its folder was deleted."""
        with osio.plain_errors("could not measure the disk"):
            return self._files.disk_bytes()

    def disk_bytes(self) -> int:
        """What the blobs, staged files and the reserve take on disk, in bytes."""
        with self._guard("could not measure the store"):
            total = 0
            for folder in (layout.BLOBS, osio.STAGING):
                with contextlib.suppress(FileNotFoundError):  # also the folder may be gone
                    for name in self._files.list(folder):
                        with contextlib.suppress(FileNotFoundError):  # a push may end meanwhile
                            total += self._files.size(f"{folder}/{name}")
            return total + (self._files.size(layout.RESERVE) if self._files.exists(layout.RESERVE) else 0)

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        with self._lock, pausing(None), osio.plain_errors(what):
            yield
