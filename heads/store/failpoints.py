"""Named places where a test may kill the process or make a system call fail. Knows the names, not what happens at them.

`POLYHEAD_FP=<name>:<action>[,<name>:<action>...]` arms them from the environment, `arm` from code. An action is `kill` (SIGKILL
to this process), `exit` (status 3, no clean-up), or the name of an errno: `EIO` raises OSError once, `ENOSPC*` from then on;
`kill@3` acts at the third visit. Besides `names()` there is `call.N`: the Nth system call of the store after arming.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass

_DURABLE_STEPS = ("write", "fsync", "rename", "dir_fsync")
_GROWING_CALLS = frozenset({"open", "write", "fsync", "mkdir", "rename"})  # what a full disk can refuse
_ERRNOS = {name: number for number, name in errno.errorcode.items()}


def _around(*steps: str) -> tuple[str, ...]:
    return tuple(f"{when}_{step}" for step in steps for when in ("before", "after"))


def _durable(subject: str) -> tuple[str, ...]:
    return _around(*(f"{subject}_{step}" for step in _DURABLE_STEPS))


REBUILD = ("after_rebuild_begin", "mid_rebuild", "after_rebuild")  # a push of only what changed: the whole file is made of two
PUSH = ("after_begin", "mid_chunk", *REBUILD, *_durable("blob"), *_around("name_mkdir", "name_dir_fsync"), *_durable("version"))
LABEL = _durable("label")
ACTIVATE = (*_durable("generation"), "before_flip", "before_ack", "after_ack")  # the last three are visited by the server
PACK = (*_durable("pack"), *_around("generation_unlink"))
DELETE = (*_durable("high_water"), *_around("version_unlink", "version_unlink_dir_fsync", "blob_unlink"))
OOD = _around("ood_mkdir", *(f"ood_{step}" for step in _DURABLE_STEPS), "ood_unlink")  # a fit: its numbers, then its record
CONFIGURATION = _around("configuration_mkdir", *(f"configuration_{step}" for step in _DURABLE_STEPS))
RESERVE = _durable("reserve")[:-2]  # without the fsync of its folder: when it is lost, it is made again
RECOVERY_NEW = tuple(f"recovery.{name}" for name in (*_around("folder_mkdir"), *_durable("store"), *RESERVE))
RECOVERY_CLEAN = tuple(f"recovery.{name}" for name in _around("staging_unlink", "orphan_unlink", "found_dir_fsync"))
STEPS = (*PUSH, *LABEL, *ACTIVATE, *DELETE, *PACK)  # what a store that is open does
_NAMES = (*STEPS, *RESERVE, *OOD, *CONFIGURATION, *RECOVERY_NEW, *RECOVERY_CLEAN)


@dataclass(slots=True)
class _Armed:
    action: str
    visits_left: int  # acts when it reaches 0
    is_persistent: bool


_armed: dict[str, _Armed] = {}
_num_calls = 0
_lock = threading.Lock()


def names() -> tuple[str, ...]:
    """Every failpoint, in the order of a push, a change of labels, an activation, a deletion and a recovery. Tests loop over it."""
    return _NAMES


def arm(name: str, action: str) -> None:
    """Arm one failpoint. ValueError for a name or action that does not exist: a typo must not make a test pass."""
    global _num_calls
    base, _, visit = action.partition("@")
    is_persistent = base.endswith("*")
    base = base.removesuffix("*")
    if name not in _NAMES and not (name.startswith("call.") and name[5:].isdigit()):
        raise ValueError(f"no such failpoint: {name!r}")
    if base not in ("kill", "exit") and base not in _ERRNOS:
        raise ValueError(f"no such failpoint action: {action!r}")
    with _lock:
        _num_calls = 0
        _armed[name] = _Armed(base, int(visit or 1), is_persistent)


def disarm() -> None:
    """Forget everything that was armed."""
    with _lock:
        _armed.clear()


def is_armed() -> bool:
    """Whether anything is still armed: a loop over `call.N` ends when its fault was never reached."""
    return bool(_armed)


def arm_from(environment: Mapping[str, str]) -> None:
    """Arm what `POLYHEAD_FP` names. ValueError as for `arm`."""
    for item in filter(None, environment.get("POLYHEAD_FP", "").split(",")):
        name, _, action = item.partition(":")
        arm(name, action)


def hit(name: str) -> None:
    """Visit a failpoint: nothing happens unless it is armed. OSError (without a path) for an errno action."""
    if not _armed:
        return
    assert name in _NAMES, f"a failpoint that names() does not list: {name}"
    with _lock:
        armed = _armed.get(name)
        if armed is None or not _is_due(armed):
            return
        if not armed.is_persistent:
            del _armed[name]
    _act(armed.action)


def hit_call(op: str) -> None:
    """Visit `call.N` for the Nth system call. A persistent disk-full error spares calls that need no space."""
    global _num_calls
    if not _armed:
        return
    with _lock:
        _num_calls += 1
        due = [name for name in _armed if name.startswith("call.") and _num_calls >= int(name[5:])]
        due = [name for name in due if _armed[name].action not in ("ENOSPC", "EDQUOT") or op in _GROWING_CALLS]
        if not due:
            return
        armed = _armed[due[0]]
        if not armed.is_persistent:
            del _armed[due[0]]
    _act(armed.action)


def _is_due(armed: _Armed) -> bool:
    armed.visits_left = max(armed.visits_left - 1, 0)
    return armed.visits_left == 0


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "exit":
        os._exit(3)
    raise OSError(_ERRNOS[action], os.strerror(_ERRNOS[action]))


arm_from(os.environ)
