"""One head file on its way in: its bytes are written and hashed, compared with what was declared, and published under their SHA-256."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.pauses import pause_point
from polyhead.heads.store import failpoints, io_errors, osio
from polyhead.heads.store.blob_io import READ_BYTES, pread, private_memory


class Destination(Protocol):
    """Where a staged file goes: the folder of blobs."""

    files: osio.StoreFiles

    def publish(self, fd: int, temporary: str, digest: str, sync: FsyncBeside | None = None) -> None: ...


class Staging:
    """One head file on its way in, used by one thread at a time. A context manager: leaving it with an error aborts.

    `write` the chunks; `verify` compares size and SHA-256; `read` gives the bytes for further checks; `finish` publishes.
    """

    def __init__(
        self, blobs: Destination, temporary: str, fd: int, declared_bytes: int, declared_sha256: str, on_end: Callable[[], None]
    ) -> None:
        self.declared_bytes = declared_bytes
        self.declared_sha256 = declared_sha256  # empty: not known yet
        self._on_end = on_end
        self.num_bytes = 0  # written so far
        self._blobs = blobs
        self._temporary = temporary
        self._fd = fd
        self._sha256 = hashlib.sha256()
        self._sync: FsyncBeside | None = None

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()  # nothing after `finish`

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append a chunk. InvalidArgument past the declared size, ResourceExhausted or StoreIoError; each aborts the push."""
        self._check_open()
        view = memoryview(chunk).cast("B")
        try:
            if self.num_bytes + len(view) > self.declared_bytes:
                raise InvalidArgument(f"more bytes than declared: {self.declared_bytes} declared", field="data")
            with io_errors.plain_errors("could not store the head"):
                self._write_halves(view)
        except BaseException:
            self.abort()
            raise
        self._sha256.update(view)
        self.num_bytes += len(view)

    def _write_halves(self, view: memoryview) -> None:
        middle = len(view) // 2
        self._blobs.files.write(self._fd, self._temporary, view[:middle], "blob")
        failpoints.hit("mid_chunk")
        self._blobs.files.write(self._fd, self._temporary, view[middle:], "blob")

    def verify(self) -> str:
        """The digest, once everything has arrived. InvalidArgument for a wrong size or SHA-256, which aborts the push."""
        self._check_open()
        digest = self._sha256.hexdigest()
        if self.num_bytes == self.declared_bytes and digest == (self.declared_sha256 or digest):
            return digest
        self.abort()
        if self.num_bytes != self.declared_bytes:
            raise InvalidArgument(f"fewer bytes than declared: {self.num_bytes} of {self.declared_bytes}", field="data")
        raise InvalidArgument(f"the data has another SHA-256 than declared: {digest}", field="sha256")

    def begin_sync(self) -> None:
        """Begin to make the bytes durable while they are being checked; `finish` waits for it."""
        self._check_open()
        self._sync = FsyncBeside(lambda: self._blobs.files.fsync(self._fd, self._temporary, "blob"))

    def read(self) -> memoryview:
        """The staged bytes in private memory, so that they can be checked before anything is published.

        They were hashed when they were written, a moment ago by this process: not again here.
        """
        self._check_open()
        view = private_memory(self.num_bytes)
        for start in range(0, self.num_bytes, READ_BYTES):
            pread(self._fd, view[start : start + READ_BYTES], start)
            pause_point()
        return view

    def pread(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on."""
        self._check_open()
        pread(self._fd, view, offset)

    def finish(self) -> str:
        """Verify, fsync, rename to the digest, fsync the folder; the digest. The blob then waits for its `add_version`."""
        digest = self.verify()
        try:
            with io_errors.plain_errors("could not store the head"):
                self._blobs.publish(self._fd, self._temporary, digest, self._sync)
        finally:
            self._end()
        return digest

    def abort(self) -> None:
        """Throw the staged bytes away. Does nothing when the push has ended."""
        if self.is_open:
            self._blobs.files.discard(self._temporary)
            self._end()

    def _check_open(self) -> None:
        if not self.is_open:
            raise FailedPrecondition("this push has already ended")

    def _end(self) -> None:
        if self._sync is not None:
            self._sync.wait()
        os.close(self._fd)
        self._fd = -1
        self._on_end()


class FsyncBeside:
    """One call on a thread of its own."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="polyhead-sync")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Until it has ended."""
        self._thread.join()

    def result(self) -> None:
        """The same, and its error."""
        self.wait()
        if self._error is not None:
            raise self._error
