"""Limits of this process's control groups: of its container, its systemd unit and every group above. Version 2 only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

OWN_CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cpu_quotas() -> Iterator[float]:
    """Cores' worth of time, of each group that has a limit."""
    for folder in _groups():
        with contextlib.suppress(OSError, ValueError):  # none, or "max"
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            yield float(quota) / float(period)


def memory_left() -> Iterator[int]:
    """Bytes that may still be taken, of each group that has a limit. Pages of files that are not in use count as free."""
    for folder in _groups():
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / "memory.max").read_text(encoding="ascii"))
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            yield max(0, limit - used + _unused_file_bytes(folder))


def _unused_file_bytes(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


def _groups() -> Iterator[Path]:
    """The process's own folder and those above it."""
    with contextlib.suppress(OSError):
        own = CGROUPS / OWN_CGROUP.read_text(encoding="ascii").rpartition("::/")[2].strip()
        yield from (folder for folder in (own, *own.parents) if folder == CGROUPS or CGROUPS in folder.parents)
