"""Reading and hashing an open head file, always into private memory: truncating a mapped file kills the process that mapped it."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from types import TracebackType

from polyhead.heads.format.errors import DataLoss
from polyhead.heads.format.pauses import pause_point
from polyhead.heads.store import io_errors

READ_BYTES = 4 << 20  # one slice is hashed while it is still in the processor's cache


class OpenBlob:
    """A stored head file held open: it can be read to its end whatever becomes of the versions that refer to it. A context manager."""

    def __init__(self, fd: int, num_bytes: int, digest: str) -> None:
        self.num_bytes = num_bytes
        self.digest = digest
        self._fd = fd

    def __enter__(self) -> OpenBlob:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def pread(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on. DataLoss if the file has become shorter."""
        pread(self._fd, view, offset)

    def is_intact(self) -> bool:
        """Whether it still has its SHA-256."""
        with io_errors.plain_errors("could not read a stored head"):
            return hash_all(self._fd, self.num_bytes) == self.digest


def private_memory(num_bytes: int) -> memoryview:
    """Writable memory of our own, returned when the last view of it is gone.

    A bytearray would be cleared first, and every other thread of Python would wait for that. Large pages, where the system has them,
    make a read into fresh memory four times as fast.
    """
    memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):  # a kernel or a system without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[:num_bytes]


def read_all(fd: int, num_bytes: int) -> tuple[memoryview, str]:
    """The first `num_bytes` bytes and their SHA-256; fewer if the file is shorter."""
    view = private_memory(num_bytes)
    sha256 = hashlib.sha256()
    done = 0
    while done < num_bytes:
        count = os.preadv(fd, [view[done : done + READ_BYTES]], done)
        if count == 0:
            break
        sha256.update(view[done : done + count])
        done += count
        pause_point()
    return view[:done], sha256.hexdigest()


def pread(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        with io_errors.plain_errors("could not read a head file"):
            count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise DataLoss("a head file has become shorter while it was read")
        done += count


def hash_all(fd: int, num_bytes: int) -> str:
    slice_ = bytearray(min(num_bytes, READ_BYTES))
    view = memoryview(slice_)
    sha256 = hashlib.sha256()
    done = 0
    while done < num_bytes and (count := os.preadv(fd, [view], done)):
        sha256.update(view[:count])
        done += count
        pause_point()
    return sha256.hexdigest()
