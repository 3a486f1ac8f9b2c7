"""All of the store's calls of the operating system. Knows files and folders below one root, not what they mean.

Every path is relative to the root and is walked folder by folder without following a link. Every call may be recorded and may
be made to fail: kill -9 cannot show a missing fsync, because the page cache survives it, but the record can.
Methods raise OSError; `io_errors.plain_errors` turns that into an error for a caller, without a path in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator

from polyhead.heads.store import failpoints
from polyhead.heads.store.io_errors import NotOurs, RenameIssued, StoreLocked, UnsafeFile
from polyhead.heads.store.layout import LOCK
from polyhead.heads.store.rename_new import rename_new
from polyhead.heads.store.spares import SpareDescriptors

STAGING = "staging"
_NEVER_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC

Stamp = tuple[int, int, int]  # inode, size, ctime in nanoseconds
OsRecord = list[tuple[str, str]]  # (operation, relative name), in the order in which the calls returned


class StoreFiles:
    """Files below one root folder, held open and locked. Thread-safe: it keeps no state but the folder's descriptor and some spare ones."""

    def __init__(self, path: str, root_fd: int, record: OsRecord | None) -> None:
        self._path = path
        self._root_fd = root_fd
        self._lock_fd = -1
        self._record = record
        self._spares = SpareDescriptors()
        self.failpoint_prefix = ""  # "recovery." while a store is being opened
        self.on_change: Callable[[], None] = _nobody  # called after each change of a file, from any thread

    @classmethod
    def open(cls, path: str, record: OsRecord | None = None) -> StoreFiles:
        """Open the root, creating it with mode 0700. UnsafeFile if others could write to it; OSError."""
        if not os.path.isdir(path):
            os.makedirs(path, mode=0o700, exist_ok=True)
            _fsync_path(os.path.dirname(path) or ".")
        root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(root_fd)
        problem = ""
        if status.st_mode & 0o022:
            problem = f"the store folder is writable by group or world (mode {stat.S_IMODE(status.st_mode):04o}): chmod go-w it"
        elif status.st_uid != os.geteuid():
            problem = f"the store folder belongs to another user: uid {status.st_uid}"
        if problem:
            os.close(root_fd)
            raise UnsafeFile(problem)
        return cls(path, root_fd, record)

    def lock(self, name: str) -> None:
        """Take the exclusive lock, held until `close`. StoreLocked names the holder's process id if it left one."""
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | _NEVER_FOLLOW, 0o600, dir_fd=self._root_fd)
        try:
            _check_plain(fd, name)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise StoreLocked(f"the store is locked by another server: process {holder}") from None
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd
        with contextlib.suppress(OSError):  # the number only helps a human; a full disk must not stop a server
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)

    def check_place(self) -> None:
        """NotOurs if the path leads to another folder or to none, or if the lock that we hold is another file's: after an rsync or a
        restore a second server can lock the new one."""
        if not _is_same(lambda: os.stat(self._path), self._root_fd):
            raise NotOurs(errno.ESTALE, "the store's folder was moved, replaced or deleted")
        if self._lock_fd >= 0 and not _is_same(lambda: os.stat(LOCK, dir_fd=self._root_fd, follow_symlinks=False), self._lock_fd):
            raise NotOurs(errno.ESTALE, "the store's lock file was replaced or deleted, another server may have the store")

    def disk_bytes(self) -> tuple[int, int]:
        """(free for us, all) of the file system; also when the folder was deleted."""
        status = os.fstatvfs(self._root_fd)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize

    def close(self) -> None:
        """Release the lock and the folder; may be called twice."""
        for fd in (self._lock_fd, self._root_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._root_fd = -1
        self._spares.close()

    def put(self, name: str, data: bytes, subject: str, *, is_new: bool = False) -> None:
        """Replace `name` by `data` as one step: temporary file, fsync, rename. The caller fsyncs the folder.

        `is_new`: FileExistsError if the name is taken. NotOurs: see `check_place`.

        On an OSError the temporary file is gone (a file whose fsync failed is never fsynced again), and `name` is as before
        unless `exists` says otherwise: a rename may report an error after it happened.
        """
        temporary = self._stage(data, subject)
        try:
            self.replace(temporary, name, subject, is_new=is_new)
        except OSError:
            self.discard(temporary)
            raise
        finally:
            self.on_change()  # after an error, too: a rename may report one after it happened

    def commit(self, name: str, data: bytes, subject: str) -> None:
        """As `put` of a new name and `fsync_folder` in one, where a caller must know whether anything has happened.

        RenameIssued: the rename was issued, and what a power cut would leave is unknown. Any other OSError: nothing has changed.
        Both folders are open before the rename, so that nothing behind it can fail for want of a descriptor.
        """
        temporary = self._stage(data, subject)
        try:
            with self._parent(temporary) as (source_fd, source_leaf), self._parent(name) as (target_fd, target_leaf):
                self._rename_for_good((source_fd, source_leaf), (target_fd, target_leaf), name, subject)
        except RenameIssued:
            raise
        except OSError:
            self.discard(temporary)
            raise
        self.on_change()

    def _rename_for_good(self, source: tuple[int, str], target: tuple[int, str], name: str, subject: str) -> None:
        is_issued = False
        try:
            self.check_place()
            with self._call("rename", name, f"{subject}_rename"):
                is_issued = True
                rename_new(*source, *target)
            with self._call("fsync_folder", name.rpartition("/")[0], f"{subject}_dir_fsync"):
                os.fsync(target[0])
        except FileExistsError:
            raise  # the file of another writer
        except OSError as error:
            if is_issued and _may_exist(*target):
                raise RenameIssued(*error.args) from None
            raise

    def _stage(self, data: bytes, subject: str) -> str:
        """The name of a new temporary file with this content, fsynced. On an OSError it is gone."""
        temporary = self.new_staging_name()
        try:
            fd = self.create(temporary)
            try:
                self.write(fd, temporary, data, subject)
                self.fsync(fd, temporary, subject)
            finally:
                os.close(fd)
        except OSError:
            self.discard(temporary)
            raise
        return temporary

    def new_staging_name(self) -> str:
        return f"{STAGING}/{secrets.token_hex(16)}"

    def create(self, name: str) -> int:
        """Create a new file, mode 0600, and return its descriptor."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NEVER_FOLLOW
        with self._parent(name) as (folder_fd, leaf), self._call("open", name):
            return self._spares.attempt(lambda: os.open(leaf, flags, 0o600, dir_fd=folder_fd))

    def write(self, fd: int, name: str, data: bytes | memoryview, subject: str) -> None:
        """Write all of `data` at the descriptor's position."""
        with self._call("write", name, f"{subject}_write"):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]

    def fsync(self, fd: int, name: str, subject: str) -> None:
        with self._call("fsync", name, f"{subject}_fsync"):
            os.fsync(fd)

    def replace(self, source: str, target: str, subject: str, *, is_new: bool = False) -> None:
        """Rename over whatever `target` is; with `is_new` FileExistsError if it is anything. NotOurs: see `check_place`."""
        self.check_place()
        with (
            self._parent(source) as (source_fd, source_leaf),
            self._parent(target) as (target_fd, target_leaf),
            self._call("rename", target, f"{subject}_rename"),
        ):
            if is_new:
                rename_new(source_fd, source_leaf, target_fd, target_leaf)
            else:
                os.rename(source_leaf, target_leaf, src_dir_fd=source_fd, dst_dir_fd=target_fd)

    def fsync_folder(self, name: str, subject: str = "") -> None:
        """Make the entries of a folder durable; "" is the root."""
        point = f"{subject}_dir_fsync" if subject else ""
        with self._parent(f"{name}/.") as (folder_fd, _), self._call("fsync_folder", name, point):
            os.fsync(folder_fd)

    def mkdir(self, name: str, subject: str) -> None:
        with self._parent(name) as (folder_fd, leaf), self._call("mkdir", name, f"{subject}_mkdir"):
            os.mkdir(leaf, 0o700, dir_fd=folder_fd)

    def unlink(self, name: str, subject: str = "") -> None:
        """NotOurs: see `check_place`."""
        self.check_place()
        try:
            with self._parent(name) as (folder_fd, leaf), self._call("unlink", name, f"{subject}_unlink" if subject else ""):
                os.unlink(leaf, dir_fd=folder_fd)
        finally:
            self.on_change()

    def discard(self, name: str) -> None:
        """Unlink if it is there and if that works; what stays in the staging folder goes at the next open."""
        with contextlib.suppress(OSError):
            self.unlink(name)

    def open_plain(self, name: str) -> tuple[int, int]:
        """Open a plain file of ours for reading: (descriptor, size in bytes). UnsafeFile for anything else."""
        with self._parent(name) as (folder_fd, leaf), self._call("open", name):
            fd = self._spares.attempt(lambda: os.open(leaf, os.O_RDONLY | os.O_NONBLOCK | _NEVER_FOLLOW, dir_fd=folder_fd))
        try:
            return fd, _check_plain(fd, name).st_size
        except BaseException:
            os.close(fd)
            raise

    def read(self, name: str, limit: int) -> bytes:
        """The content of a small file, at most `limit` + 1 bytes: a longer answer means that the file is too long."""
        fd, _ = self.open_plain(name)
        with open(fd, "rb", buffering=0) as file:
            parts = []
            while limit >= 0 and (part := file.read(limit + 1)):
                parts.append(part)
                limit -= len(part)
            return b"".join(parts)

    def exists(self, name: str) -> bool:
        """Whether anything at all has this name, a dangling link too."""
        try:
            with self._parent(name) as (folder_fd, leaf):
                os.stat(leaf, dir_fd=folder_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Size in bytes. UnsafeFile for a link or anything else that is not plain."""
        with self._parent(name) as (folder_fd, leaf):
            status = os.stat(leaf, dir_fd=folder_fd, follow_symlinks=False)
        return _check_status(status, name).st_size

    def stamp(self, name: str) -> Stamp:
        """What changes whenever the file's content does."""
        with self._parent(name) as (folder_fd, leaf):
            return stamp_of(os.stat(leaf, dir_fd=folder_fd, follow_symlinks=False))

    def list(self, name: str) -> list[str]:
        """The names in a folder, sorted; "" is the root."""
        with self._parent(f"{name}/.") as (folder_fd, _), self._call("list", name):
            return sorted(os.listdir(folder_fd))

    @contextlib.contextmanager
    def _parent(self, name: str) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder that holds `name`, reached without following a link, and the last part of the name."""
        *folders, leaf = [part for part in name.split("/") if part]
        fd = self._spares.attempt(lambda: os.dup(self._root_fd))
        try:
            for part in folders:
                below = self._open_folder(part, fd)
                os.close(fd)
                fd = below
            yield fd, leaf
        finally:
            os.close(fd)
            self._spares.refill()

    def _open_folder(self, part: str, above_fd: int) -> int:
        return self._spares.attempt(lambda: os.open(part, os.O_RDONLY | os.O_DIRECTORY | _NEVER_FOLLOW, dir_fd=above_fd))

    @contextlib.contextmanager
    def _call(self, op: str, name: str, point: str = "") -> Iterator[None]:
        """One system call: failpoints around it, and a line in the record once it has succeeded."""
        if point:
            failpoints.hit(f"{self.failpoint_prefix}before_{point}")
        failpoints.hit_call(op)
        yield
        if self._record is not None:
            self._record.append((op, name))
        if point:
            failpoints.hit(f"{self.failpoint_prefix}after_{point}")


def _nobody() -> None:
    """Nobody wants to know."""


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_ctime_ns


def _is_same(look: Callable[[], os.stat_result], fd: int) -> bool:
    """Whether what `look` finds is the open file."""
    try:
        return os.path.samestat(look(), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _check_plain(fd: int, name: str) -> os.stat_result:
    return _check_status(os.fstat(fd), name)


def _check_status(status: os.stat_result, name: str) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
        raise UnsafeFile(f"not a regular file that this user owns, with one hard link: {name[:200]!r}")
    return status


def _may_exist(folder_fd: int, leaf: str) -> bool:
    try:
        os.stat(leaf, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


def _fsync_path(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
