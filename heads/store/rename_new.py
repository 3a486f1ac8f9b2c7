"""A rename that never replaces: two servers that believe they own one store cannot both make generation 3. Knows no store."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache

_NOREPLACE = 1  # RENAME_NOREPLACE of linux/fs.h
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})  # by the kernel or the file system


def rename_new(source_fd: int, source: str, target_fd: int, target: str) -> None:
    """Rename a file between two open folders, in one step. FileExistsError if the target's name is taken; OSError.

    Where the file system cannot do that: a second link, which never replaces either, and then the first one goes.
    """
    rename = _renameat2()
    if rename is not None:
        if rename(source_fd, os.fsencode(source), target_fd, os.fsencode(target), _NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number))  # Python picks the subclass
    os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
    os.unlink(source, dir_fd=source_fd)


@cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    """None where the C library has no such call."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    call.restype = ctypes.c_int
    found: Callable[[int, bytes, int, bytes, int], int] = call
    return found
