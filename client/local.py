"""A server process of one's own on this machine: for demos, tests and notebooks. Knows the command line, not the server's code."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from polyhead.client.errors import Unavailable

__all__ = ["LocalServer", "local_server"]


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A running server process and where it listens."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]  # the server's own JSON line

    @property
    def address(self) -> str:
        """host:port of the gRPC server."""
        return f"{self.ready['host']}:{self.ready['port']}"


@contextlib.contextmanager
def local_server(arguments: Sequence[str] = (), on_log: Callable[[str], None] = lambda line: None) -> Iterator[LocalServer]:
    """Run `polyhead serve ARGUMENTS` on free ports until the block is left. `on_log` gets each line of its log, in a thread.

    Raises Unavailable if the process ends before it is ready. SIGTERM leaves the block by SystemExit, unless the caller handles it.
    """
    with _leaving_on_sigterm(), _server(arguments, on_log) as server:
        yield server


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """A process that SIGTERM ends on the spot would leave its server running."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _server(arguments: Sequence[str], on_log: Callable[[str], None]) -> Iterator[LocalServer]:
    command = [
        sys.executable,
        "-m",
        "polyhead.client.cli.main",
        "serve",
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--json-ready",
        *arguments,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    last_lines: list[str] = []
    reader = threading.Thread(target=_follow, args=(process, last_lines, on_log), daemon=True)
    reader.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            reader.join(5.0)
            raise Unavailable(
                f"the server ended before it was ready, exit status {process.wait()}:\n" + "".join(last_lines[-20:])
            )
        yield LocalServer(process, json.loads(line))
    finally:
        _end(process)
        reader.join(5.0)


def _follow(process: subprocess.Popen[str], last_lines: list[str], on_log: Callable[[str], None]) -> None:
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            last_lines.append(line)
            del last_lines[:-50]
            on_log(line.rstrip())


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
