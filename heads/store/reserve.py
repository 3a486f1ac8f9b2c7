"""A file that holds back disk space: on a full disk an activation, a deletion and a change of labels must still be possible."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from polyhead.heads.store import io_errors, layout, osio

RESERVE_BYTES = 64 * 1024  # of records a few, see records.MAX_RECORD_BYTES


def write_with_reserve(files: osio.StoreFiles, write: Callable[[], None]) -> None:
    """Run `write`; on a full disk give up the reserve and run it again. OSError; RenameIssued is never tried twice."""
    try:
        write()
    except io_errors.RenameIssued:
        raise
    except OSError as error:
        if not io_errors.is_disk_full(error):
            raise
        files.discard(layout.RESERVE)
        write()
        with contextlib.suppress(OSError):
            write_reserve(files)


def write_reserve(files: osio.StoreFiles) -> None:
    """Make the reserve if it is not there. OSError when there is no room."""
    if not files.exists(layout.RESERVE):
        files.put(layout.RESERVE, bytes(range(256)) * (RESERVE_BYTES // 256), "reserve")
