"""The head store: a small, crash-safe database of files. What is pushed, what is active, and what was active before.

Knows nothing of torch, of gRPC, or of what is inside a head file, and imports none of it: its crash tests start at once.
kill -9 at any moment leaves exactly the old or exactly the new active set, and what was acknowledged stays.
`layout.py` draws the folder, `osio.py` makes the system calls, `failpoints.py` lists the moments at which a crash is tested. The methods of
a HeadStore are in `head_versions.py`, `deletion.py`, `active_set.py` and `adoption.py`.

    with HeadStore.open("store", trunk_id) as store:
        with store.begin_push(len(data), sha256) as staging:
            staging.write(data)
            digest = staging.finish()
        version = store.add_version("policy", digest, manifest).version
        store.commit_generation({"policy": version}, parent=None)
"""

from __future__ import annotations

import contextlib
import os
import re
from types import TracebackType

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument, PolyheadError
from polyhead.heads.store import io_errors, layout
from polyhead.heads.store.active_set import ActiveSets, PastGeneration
from polyhead.heads.store.adoption import Adoption
from polyhead.heads.store.blob_io import OpenBlob
from polyhead.heads.store.damage import StoreDamage
from polyhead.heads.store.deletion import Deletion
from polyhead.heads.store.generations import CommitUncertain
from polyhead.heads.store.identity import identify, read_trunk_id
from polyhead.heads.store.io_errors import StoreIoError, StoreLocked, StoreTaken, UnsafeFile
from polyhead.heads.store.osio import OsRecord, StoreFiles
from polyhead.heads.store.records import GenerationRecord, VersionRecord
from polyhead.heads.store.scrub import Scrub
from polyhead.heads.store.staging import Staging

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

_TRUNK_ID = re.compile(r"[0-9a-f]{64}")


class HeadStore(Adoption, Deletion, ActiveSets):
    """One store folder, locked by this process. Thread-safe; every method blocks on the disk, so call it from a worker thread.

    Every method may raise ResourceExhausted (a full disk) and StoreIoError (the operating system failed); `commit_generation`
    and `repair_to` also CommitUncertain, after which the process has to end.
    """

    def __init__(self, path: str, trunk_id: str, files: StoreFiles, max_staged: int) -> None:
        """Use `open`."""
        super().__init__(path, trunk_id, files, max_staged)
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
        if os.path.lexists(absolute) and not os.path.isdir(absolute):
            raise io_errors.UnsafeFile("could not open the store: no folder but something else stands at its place")
        with io_errors.plain_errors("could not open the store"):
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
        with io_errors.plain_errors("could not read the store"):
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

    def check_folder(self) -> None:
        """Look at the folder, the lock and the files of the active set, and what `scrub` found. Sets `lost` and `other_damage`.

        Reads no weights that were read before: call it now and then while serving.
        """
        with self._lock:
            self.restart_damage = self._inspector.find_restart_damage(self._files)
            if self.restart_damage is None:
                with contextlib.suppress(OSError):
                    self.other_damage = (*self._inspector.find_corrupt(), *self._inspector.find_other_damage())
