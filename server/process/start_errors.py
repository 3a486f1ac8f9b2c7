"""What keeps a server from starting and is no PolyheadError: the system's errors, in words, with what to do. Knows no model."""

from __future__ import annotations

import errno

from polyhead.heads.format.errors import FailedPrecondition

__all__ = ["explained"]

_FOLDERS = "--store for the heads, XDG_CACHE_HOME and HF_HOME for what can be made again"
_HINTS = {
    errno.EACCES: f"give this user the right, or name folders that it may write to: {_FOLDERS}",
    errno.EPERM: f"give this user the right, or name folders that it may write to: {_FOLDERS}",
    errno.EROFS: f"name folders on a disk that can be written to: {_FOLDERS}",
    errno.ENOSPC: f"free some space, or name folders on another disk: {_FOLDERS}",
    errno.EDQUOT: f"free some space, or name folders on another disk: {_FOLDERS}",
    errno.EMFILE: "raise the limit of open files: ulimit -n, or LimitNOFILE= of a systemd unit",
    errno.ENFILE: "the machine has no more open files to give: raise fs.file-max",
    errno.ENOENT: "is it a broken link, or was it deleted a moment ago?",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EIO: "an input/output error of the disk: see the kernel's log (dmesg)",
}


def explained(error: OSError) -> FailedPrecondition:
    """The same as an error that is shown in two lines; the operator who starts a server may read its paths."""
    what = error.strerror or str(error) or type(error).__name__
    where = f": {error.filename}" if error.filename else ""
    hint = _HINTS.get(error.errno or 0, "run it again with POLYHEAD_LOG_LEVEL=DEBUG for the place in the code")
    return FailedPrecondition(f"the operating system refused a call during the start: {what}{where}\nhint: {hint}")
