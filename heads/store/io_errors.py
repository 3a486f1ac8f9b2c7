"""What can go wrong between the store and the operating system, and each case as an error for a caller, without a path in it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import ClassVar

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, PolyheadError, ResourceExhausted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FULL_HINT = "free space with polyhead heads delete NAME@VERSION, or by other means"
_TOO_MANY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class StoreIoError(DataLoss):
    """The operating system refused a read or a write for a reason other than a full disk."""

    reason: ClassVar[str] = "STORE_IO_ERROR"


class StoreFull(ResourceExhausted):
    """No room for what was to be written. It names no time for a retry: room is made by deleting something."""

    reason: ClassVar[str] = "STORE_FULL"


class StoreLocked(FailedPrecondition):
    """Another process, or another HeadStore of this one, has the folder open."""

    reason: ClassVar[str] = "STORE_LOCKED"


class UnsafeFile(FailedPrecondition):
    """A link, a device, a foreign owner or loose permissions where the store expects its own plain file or folder."""

    reason: ClassVar[str] = "STORE_UNSAFE_FILE"


class StoreTaken(FailedPrecondition):
    """The folder or its lock file is no longer the one that was opened: another server may have it. Nothing was changed."""

    reason: ClassVar[str] = "STORE_TAKEN"


class NotOurs(OSError):
    """The folder or its lock file was replaced or deleted. Becomes StoreTaken."""


class RenameIssued(OSError):
    """The rename was issued and may have happened, but it is not known whether it lasts. Any other OSError comes before it."""


def is_disk_full(error: OSError) -> bool:
    """Whether freeing space would help."""
    return error.errno in _FULL


@contextlib.contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn an OSError into a PolyheadError that names `what` was tried and the errno, never a path."""
    try:
        yield
    except OSError as error:
        raise _convert(error, what) from None


def _convert(error: OSError, what: str) -> PolyheadError:
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    if isinstance(error, NotOurs | FileExistsError):
        problem = str(error.strerror) if isinstance(error, NotOurs) else "another server writes to the store"
        return StoreTaken(f"{what}: {problem}\nhint: stop this server; one store has one server")
    if is_disk_full(error):
        return StoreFull(f"{what}: the store's disk or quota is full ({name})\nhint: {FULL_HINT}")
    if error.errno in _TOO_MANY:
        return ResourceExhausted(f"{what}: the server is out of a system resource ({name})", retry_after_s=5.0)
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return UnsafeFile(f"{what}: a link or a plain file stands where the store keeps a folder or a file")
    return StoreIoError(f"{what}: the operating system failed ({name})")
