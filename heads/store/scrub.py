"""Reads every stored head again, a slice at a time: a file that the disk has corrupted is found before it is needed.

Knows no clock and no rate: who calls `step` decides how fast it goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

from polyhead.heads.format.errors import PolyheadError
from polyhead.heads.store import io_errors, layout, osio
from polyhead.heads.store.blobs import BlobFolder

SLICE_BYTES = 1 << 20


class Scrub:
    """One pass over the blobs of a store after the other. Used by one thread at a time."""

    def __init__(self, blobs: BlobFolder) -> None:
        self._blobs = blobs
        self._waiting: list[str] | None = None  # None: no pass is under way
        self._reading: _Reading | None = None

    def step(self) -> int:
        """Read the next slice; its bytes. 0: the pass is over, the next call begins another one. StoreIoError."""
        with io_errors.plain_errors("could not read a stored head"):
            if self._waiting is None:
                self._waiting = list(reversed(self._blobs.files.list(layout.BLOBS)))
            while self._reading is None:
                if not self._waiting:
                    self._waiting = None
                    return 0
                self._reading = self._open(self._waiting.pop())
            return self._read(self._reading)

    def close(self) -> None:
        """Give up what is open."""
        if self._reading is not None:
            self._reading.close()
        self._reading, self._waiting = None, None

    def _open(self, digest: str) -> _Reading | None:
        """None for a blob that was deleted meanwhile, or that is no plain file: `damage` tells of those."""
        with contextlib.suppress(FileNotFoundError, PolyheadError):
            return _Reading(digest, *self._blobs.files.open_plain(layout.blob_path(digest)))
        return None

    def _read(self, reading: _Reading) -> int:
        try:
            count = reading.read()
        except OSError:  # a bad sector
            reading.sha256.update(b"unreadable")
            count = 0
        if count == 0:
            if reading.stamp() == reading.opened_as:
                self._blobs.note(reading.digest, reading.sha256.hexdigest(), reading.opened_as)
            reading.close()
            self._reading = None
        return max(count, 1)


class _Reading:
    """One blob that is being hashed."""

    def __init__(self, digest: str, fd: int, num_bytes: int) -> None:
        self.digest = digest
        self.sha256 = hashlib.sha256()
        self.opened_as = osio.stamp_of(os.fstat(fd))
        self._fd = fd
        self._done = 0
        with contextlib.suppress(OSError, AttributeError):  # from the disk, not from what the kernel remembers of it
            os.posix_fadvise(fd, 0, num_bytes, os.POSIX_FADV_DONTNEED)

    def read(self) -> int:
        data = os.pread(self._fd, SLICE_BYTES, self._done)
        self.sha256.update(data)
        self._done += len(data)
        return len(data)

    def stamp(self) -> osio.Stamp:
        return osio.stamp_of(os.fstat(self._fd))

    def close(self) -> None:
        os.close(self._fd)
