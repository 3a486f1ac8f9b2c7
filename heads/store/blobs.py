"""Head files by content: published under their SHA-256 once they are staged, deleted when no version refers to them.

Has neither names nor versions: it counts references.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted
from polyhead.heads.store import failpoints, io_errors, layout, osio
from polyhead.heads.store.blob_io import OpenBlob, hash_all, read_all
from polyhead.heads.store.staging import FsyncBeside, Staging

T = TypeVar("T")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobFolder:
    """The blobs, and how many versions refer to each. Shares the store's lock."""

    def __init__(self, files: osio.StoreFiles, lock: threading.RLock, max_staged: int) -> None:
        self.files = files
        self._lock = lock
        self._max_staged = max_staged
        self._num_staged = 0
        self._references: Counter[str] = Counter()  # versions
        self._waiting: Counter[str] = Counter()  # published, and not yet taken by a version
        self._verified: dict[str, osio.Stamp] = {}  # the file as it was when its bytes had their SHA-256
        self._corrupt: dict[str, osio.Stamp] = {}  # the same, when they had another one

    def load(self) -> None:
        """Look at every blob's name and kind. FailedPrecondition for what does not belong here; OSError."""
        for name in self.files.list(layout.BLOBS):
            if not _SHA256.fullmatch(name):
                raise FailedPrecondition(f"an unexpected file among the blobs: {name[:80]!r}")
            self.files.size(layout.blob_path(name))

    def begin(self, declared_bytes: int, declared_sha256: str) -> Staging:
        """InvalidArgument for a bad size or digest; ResourceExhausted when `max_staged` pushes are under way."""
        if isinstance(declared_bytes, bool) or not isinstance(declared_bytes, int) or declared_bytes < 1:
            raise InvalidArgument(f"a head file has at least one byte: {declared_bytes}", field="declared_bytes")
        if not _SHA256.fullmatch(declared_sha256):
            raise InvalidArgument(f"not 64 lower-case hex digits: {declared_sha256[:80]!r}", field="sha256")
        with self._lock:
            if self._num_staged >= self._max_staged:
                raise ResourceExhausted(f"too many pushes at the same time: {self._num_staged}", retry_after_s=1.0)
            self._num_staged += 1
        return self._stage(declared_bytes, declared_sha256, self._end_staging, "after_begin")

    def begin_rebuilt(self, declared_bytes: int, declared_sha256: str) -> Staging:
        """The whole file of a push that sent only a part of it, and that counts already."""
        return self._stage(declared_bytes, declared_sha256, lambda: None, "after_rebuild_begin")

    def _stage(self, declared_bytes: int, declared_sha256: str, on_end: Callable[[], None], point: str) -> Staging:
        temporary = self.files.new_staging_name()
        try:
            with io_errors.plain_errors("could not begin a push"):
                fd = self.files.create(temporary)
                staging = Staging(self, temporary, fd, declared_bytes, declared_sha256, on_end)
        except BaseException:
            on_end()
            raise
        try:
            with io_errors.plain_errors("could not begin a push"):
                failpoints.hit(point)
        except BaseException:
            staging.abort()
            raise
        return staging

    def _end_staging(self) -> None:
        with self._lock:
            self._num_staged -= 1

    def publish(self, fd: int, temporary: str, digest: str, sync: FsyncBeside | None = None) -> None:
        """Give a verified staged file its name, for good. OSError leaves nothing behind that no version refers to.

        `sync` is its fsync, if that has begun already.

        A blob that is there and intact is kept; a damaged one is replaced: pushing the same head again repairs it.
        """
        with self._lock:
            self._waiting[digest] += 1  # from here on it is not deleted
        try:
            if self._is_intact(digest):
                self.files.discard(temporary)
            else:
                if sync is None:
                    self.files.fsync(fd, temporary, "blob")
                else:
                    sync.result()
                self.files.replace(temporary, layout.blob_path(digest), "blob")
            # also when it was there: the other push may not have come this far
            self.files.fsync_folder(layout.BLOBS, "blob")
            self.note(digest, digest, self.files.stamp(layout.blob_path(digest)))
        except BaseException:
            self.files.discard(temporary)
            self.give_up(digest)
            raise

    def _is_intact(self, digest: str) -> bool:
        try:
            fd, num_bytes = self.files.open_plain(layout.blob_path(digest))
        except (OSError, FailedPrecondition):
            return False
        try:
            return hash_all(fd, num_bytes) == digest
        finally:
            os.close(fd)

    def is_held(self, digest: str) -> bool:
        """Whether a version refers to it or a finished push waits for its version."""
        with self._lock:
            return self._references[digest] > 0 or self._waiting[digest] > 0

    def is_whole(self, digest: str, num_bytes: int) -> bool:
        """Whether its file is there, has this size, and is not known to be damaged. Reads no weights."""
        try:
            return self.num_bytes(digest) == num_bytes and not self.is_corrupt(digest)
        except (OSError, FailedPrecondition):
            return False

    def take(self, digest: str) -> None:
        """A version refers to it from now on."""
        with self._lock:
            self._references[digest] += 1
            self._waiting[digest] = max(self._waiting[digest] - 1, 0)

    def release(self, digest: str) -> None:
        """A version is gone. Deletes the blob after the last one; a failure leaves an orphan that the next open removes."""
        with self._lock:
            self._references[digest] -= 1
            self._delete_unless_held(digest)

    def give_up(self, digest: str) -> None:
        """A finished push will get no version after all."""
        with self._lock:
            self._waiting[digest] = max(self._waiting[digest] - 1, 0)
            self._delete_unless_held(digest)

    def count_loaded(self, digest: str) -> None:
        """A version record was found while the store opened."""
        self._references[digest] += 1

    def _delete_unless_held(self, digest: str) -> None:
        if self.is_held(digest):
            return
        self._references.pop(digest, None)
        self._waiting.pop(digest, None)
        self._verified.pop(digest, None)
        self._corrupt.pop(digest, None)
        try:
            self.files.unlink(layout.blob_path(digest), "blob")
        except OSError:
            return

    def remove_orphans(self) -> int:
        """Delete the blobs that nothing refers to; how many. OSError. Only while no version record is unreadable."""
        with self._lock:
            orphans = [name for name in self.files.list(layout.BLOBS) if not self.is_held(name)]
            for name in orphans:
                self.files.unlink(layout.blob_path(name), "orphan" if self.files.failpoint_prefix else "blob")
        return len(orphans)

    def num_bytes(self, digest: str) -> int:
        """Size of a blob. OSError if it is missing."""
        return self.files.size(layout.blob_path(digest))

    def read(self, digest: str) -> memoryview:
        """The whole blob in private memory. DataLoss if it is missing or its SHA-256 another one."""
        data, found = self._hashed(digest, read_all)
        if found != digest:
            raise DataLoss(f"the stored head is damaged: its SHA-256 is no longer {digest[:12]}...")
        return data

    def open(self, digest: str) -> OpenBlob:
        """The blob, held open. DataLoss if it is missing; its content is not looked at."""
        with io_errors.plain_errors("could not read a stored head"):
            try:
                fd, num_bytes = self.files.open_plain(layout.blob_path(digest))
            except FileNotFoundError:
                raise DataLoss(f"the stored head is missing: {digest[:12]}...") from None
        return OpenBlob(fd, num_bytes, digest)

    def verify(self, digest: str) -> bool:
        """Whether the blob has its SHA-256. Reads it, in slices, unless that was done since the file's inode, size and ctime last changed.

        False if it is missing.
        """
        if self.is_verified(digest):
            return True
        if self.is_corrupt(digest):
            return False
        try:
            return self._hashed(digest, lambda fd, num_bytes: (None, hash_all(fd, num_bytes)))[1] == digest
        except DataLoss:
            return False

    def is_verified(self, digest: str) -> bool:
        """Whether its bytes were read and had their SHA-256, and the file looks as it did then."""
        return self._looks_as(self._verified.get(digest), digest)

    def is_corrupt(self, digest: str) -> bool:
        """Whether they had another one, and the file looks as it did then."""
        return self._looks_as(self._corrupt.get(digest), digest)

    def _looks_as(self, stamp: osio.Stamp | None, digest: str) -> bool:
        try:
            return stamp is not None and stamp == self.files.stamp(layout.blob_path(digest))
        except OSError:
            return False

    def note(self, digest: str, found: str, stamp: osio.Stamp) -> None:
        """The whole blob was read: `found` is its SHA-256, `stamp` the file at that time."""
        if found != digest:
            self._verified.pop(digest, None)
            self._corrupt[digest] = stamp
            return
        self._verified[digest] = stamp
        self._corrupt.pop(digest, None)

    def _hashed(self, digest: str, read: Callable[[int, int], tuple[T, str]]) -> tuple[T, str]:
        """What `read` makes of the descriptor and the size, and the SHA-256 that it found, which is remembered."""

        def note(fd: int, num_bytes: int) -> tuple[T, str]:
            before = osio.stamp_of(os.fstat(fd))
            content, found = read(fd, num_bytes)
            if osio.stamp_of(os.fstat(fd)) == before:
                self.note(digest, found, before)
            return content, found

        return self._with_blob(digest, note)

    def _with_blob(self, digest: str, read: Callable[[int, int], T]) -> T:
        path = layout.blob_path(digest)
        with io_errors.plain_errors("could not read a stored head"):
            try:
                fd, num_bytes = self.files.open_plain(path)
            except FileNotFoundError:
                raise DataLoss(f"the stored head is missing: {digest[:12]}...") from None
            try:
                return read(fd, num_bytes)
            finally:
                os.close(fd)
