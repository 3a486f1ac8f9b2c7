"""The other ranks' processes: started, met on a socket in a folder that nobody else may enter, ended. Knows no passes and no weights."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from polyhead.server.parallel.wire import Gone, line, read_line

MODULE = "polyhead.server.parallel.rank"
MEETING, SOCKET = "meeting", "socket"  # names in the folder: torch.distributed's file, and where the ranks connect
MEET_S = 300.0  # for a process to import torch, on a slow disk
KILLED_S = 10.0  # for the kernel to end a process
LONGEST_PATH = 100  # bytes of a socket's, on every Unix
_CREDENTIALS = struct.Struct("3i")  # of SO_PEERCRED: process, user, group


Processes = dict[int, subprocess.Popen[bytes]]  # by rank
Connections = dict[int, dict[str, socket.socket]]  # by rank, and by what is said on it


@dataclass(eq=False, slots=True)
class Child:
    """One rank's process, and two sockets to it."""

    rank: int
    process: subprocess.Popen[bytes]
    passes: socket.socket
    control: socket.socket

    def close(self) -> None:
        self.passes.close()
        self.control.close()


def private_folder() -> Path:
    """For this user alone, with a path that is short enough for a socket's."""
    for parent in (None, "/tmp"):
        folder = Path(tempfile.mkdtemp(prefix="polyhead-", dir=parent))
        if len(os.fsencode(folder / SOCKET)) <= LONGEST_PATH:
            return folder
        folder.rmdir()
    raise AssertionError("a folder directly under /tmp has a short path")


def listen(folder: Path) -> socket.socket:
    """Where ranks connect."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / SOCKET))
    listener.listen(16)
    listener.settimeout(0.1)
    return listener


def start(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    """It writes nothing but its log, where this process does. It is killed with the thread that starts it."""
    command = [sys.executable, "-m", MODULE, str(folder / SOCKET), str(rank)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def meet(listener: socket.socket, processes: Processes, settings: dict[str, Any], is_over: Callable[[], bool]) -> list[Child]:
    """Wait until each has connected twice, and tell it what it is for. Gone if one has ended before, or does not come."""
    met: Connections = {rank: {} for rank in processes}
    until = time.monotonic() + MEET_S
    try:
        while any(len(sockets) < 2 for sockets in met.values()):
            _check_alive(processes, until)
            if is_over():
                raise Gone("the start was given up")
            with contextlib.suppress(TimeoutError):
                _take(listener.accept()[0], processes, met)
    except BaseException:
        for each in (each for sockets in met.values() for each in sockets.values()):
            each.close()
        raise
    children = [Child(rank, processes[rank], sockets["passes"], sockets["control"]) for rank, sockets in sorted(met.items())]
    for child in children:
        child.control.sendall(line({**settings, "rank": child.rank}))
    return children


def _check_alive(processes: Processes, until: float) -> None:
    for rank, process in processes.items():
        if (status := process.poll()) is not None:
            raise Gone(f"rank {rank} {how_it_ended(status)} before it was ready")
    if time.monotonic() > until:
        raise Gone(f"a rank was not ready within {MEET_S:.0f} s")


def _take(connection: socket.socket, processes: Processes, met: Connections) -> None:
    """A connection, if it is one of ours: the folder keeps other users out, and the process id says which rank it is."""
    pid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
    rank = next((rank for rank, process in processes.items() if process.pid == pid), None)
    if rank is None:
        connection.close()
        return
    connection.settimeout(MEET_S)
    with connection.makefile("rb", buffering=0) as stream:
        kind = str(read_line(cast(BinaryIO, stream))["kind"])
    connection.settimeout(None)
    met[rank][kind] = connection


def how_it_ended(status: int) -> str:
    """Of an exit status as `subprocess` has it."""
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def connect(path: str, kind: str) -> socket.socket:
    """The other end: of a rank that has been started."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(line({"kind": kind}))
    return connection


def end(processes: Processes, within_s: float) -> None:
    """Wait for each, and kill those that have not ended within that time: also one that is stopped."""
    until = time.monotonic() + within_s
    for process in processes.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    kill(processes)
    for process in processes.values():
        process.wait(KILLED_S)


def kill(processes: Processes) -> None:
    for process in processes.values():
        process.kill()


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
