"""A server process of one's own on this machine: for demos, tests, notebooks and Ray. Knows the command line, not the server's code."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from polyhead.client.errors import Unavailable

__all__ = ["SERVE", "LocalServer", "local_server"]

SERVE = (sys.executable, "-m", "polyhead.client.cli.main", "serve")
NUM_LAST_LINES = 20  # of its log, that an error shows
STOP_S = 30.0
READ_S = 5.0  # for the rest of the log of a server that has ended
_PR_SET_PDEATHSIG = 1  # prctl(2)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A running `polyhead serve`, and where it listens. On Linux it is killed when this process ends, however that ends."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]  # the server's own JSON line
    last_lines: collections.deque[str] = field(default_factory=collections.deque, repr=False)  # of its log
    reader: threading.Thread | None = field(default=None, repr=False)  # of its log, to the end

    @classmethod
    def start(
        cls, flags: Sequence[str] = (), on_log: Callable[[str], None] = lambda line: None, command: Sequence[str] = SERVE
    ) -> LocalServer:
        """A server on free ports, unless `flags` name others; returns when it is ready. `on_log` gets each line of its log, in a thread.

        Raises Unavailable, with the log's last lines, if the process ends before.
        """
        arguments = [*command, "--port", "0", "--metrics-port", "0", "--json-ready", *flags]
        lines: collections.deque[str] = collections.deque(maxlen=NUM_LAST_LINES)
        started: Future[subprocess.Popen[str]] = Future()
        reader = threading.Thread(target=_start_and_read, args=(arguments, started, lines, on_log), daemon=True)
        reader.start()
        process = started.result()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                return cls(process, json.loads(line), lines, reader)
            process.wait()
            raise Unavailable(_how_it_ended("the server ended before it was ready", process, lines, reader))
        except BaseException:
            _stop(process, STOP_S, reader)
            raise

    @property
    def address(self) -> str:
        """host:port of the gRPC server."""
        return f"{self.ready['host']}:{self.ready['port']}"

    def check(self) -> None:
        """Unavailable if it has ended: the exit status and the last lines of its log."""
        if self.process.poll() is not None:
            raise Unavailable(_how_it_ended("the server ended", self.process, self.last_lines, self.reader))

    def stop(self, grace_s: float = STOP_S) -> None:
        """Let it end its calls; after so many seconds it is killed. Its store is whole in either case."""
        _stop(self.process, grace_s, self.reader)


@contextlib.contextmanager
def local_server(arguments: Sequence[str] = (), on_log: Callable[[str], None] = lambda line: None) -> Iterator[LocalServer]:
    """Run `polyhead serve ARGUMENTS` on free ports until the block is left. `on_log` gets each line of its log, in a thread.

    Raises Unavailable if the process ends before it is ready. SIGTERM leaves the block by SystemExit, unless the caller handles it.
    """
    with _leaving_on_sigterm():
        server = LocalServer.start(arguments, on_log)
        try:
            yield server
        finally:
            server.stop()


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


def _start_and_read(
    command: Sequence[str], started: Future[subprocess.Popen[str]], lines: collections.deque[str], on_log: Callable[[str], None]
) -> None:
    """Start the server and read its log to its end. In one thread: what is to die with its parent dies with the thread that started it."""
    pipe: Any = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, preexec_fn=_dying_with_parent()
        )
    except BaseException as error:
        started.set_exception(error)
        return
    started.set_result(process)
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            lines.append(line.rstrip())
            try:
                on_log(line.rstrip())
            except Exception:
                log.exception("on_log failed with a line of the server's log")


def _how_it_ended(
    what: str, process: subprocess.Popen[str], lines: collections.deque[str], reader: threading.Thread | None
) -> str:
    if reader is not None:
        reader.join(READ_S)
    return f"{what}, exit status {process.poll()}:\n" + "\n".join(lines)


def _stop(process: subprocess.Popen[str], grace_s: float, reader: threading.Thread | None) -> None:
    process.terminate()
    try:
        process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if reader is not None:
        reader.join(READ_S)
    if process.stdout is not None:
        process.stdout.close()


def _dying_with_parent() -> Callable[[], None] | None:
    """For the child before it becomes the server: a parent that is killed cannot end it, and it would go on holding its store's lock.

    Whatever it calls is looked up here: after the fork only one thread is left, and a lock of another one would stay locked.
    """
    if sys.platform != "linux":
        return None
    parent, prctl, number = os.getpid(), ctypes.CDLL(None).prctl, int(signal.SIGKILL)

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it has died meanwhile
            os._exit(1)

    return die_with_parent
