"""One `polyhead serve` as a child: started, looked after, and gone when its parent is. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

SERVE = (sys.executable, "-m", "polyhead.client.cli.main", "serve")
NUM_LAST_LINES = 20
_PR_SET_PDEATHSIG = 1  # prctl(2)


class ServerProcess:
    """Ready when it is made. `on_log` gets each line of its log, in a thread.

    Raises RuntimeError with the log's last lines if the server ends before it is ready.
    """

    def __init__(self, flags: Sequence[str], command: Sequence[str] = SERVE, on_log: Callable[[str], None] = lambda line: None) -> None:
        self._last_lines: list[str] = []
        self._on_log = on_log
        arguments = [*command, *flags, "--metrics-port", "0", "--json-ready"]
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_die_with_parent
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._process.stdout.close()
            self.check()
        self.ready: dict[str, Any] = json.loads(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """RuntimeError if it has ended: the exit status and the last lines of its log."""
        if (status := self._process.poll()) is not None:
            self._reader.join(5.0)
            raise RuntimeError(f"the server ended with exit status {status}:\n" + "\n".join(self._last_lines[-NUM_LAST_LINES:]))

    def gauges(self, *names: str) -> list[float]:
        """The present values of gauges without labels, from its metrics. OSError if it does not answer."""
        url = f"http://127.0.0.1:{self.ready['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            lines = answer.read().decode().splitlines()
        values = dict(line.split(" ", 1) for line in lines if not line.startswith("#"))
        return [float(values[name]) for name in names]

    def stop(self, grace_s: float) -> None:
        """Drain it; after so many seconds it is killed. Its store is whole in either case."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self._process.kill()
        self._process.wait()
        self._reader.join(5.0)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self, log: IO[str]) -> None:
        with log:
            for line in log:
                self._last_lines.append(line.rstrip())
                del self._last_lines[:-NUM_LAST_LINES]
                self._on_log(line.rstrip())


class FollowerPlace:
    """A store and a port on this node that no other follower has, held until the process ends.

    Whoever has it next finds both again, and so is the same follower after a restart: the primary knows followers by their address.
    """

    def __init__(self, base: Path, host: str) -> None:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in itertools.count():
            self._file = (base / f"{number}.port").open("a+")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                continue
            self.store = base / str(number)
            self.port = self._port(host)
            return

    def leave(self) -> None:
        """Another may have it."""
        self._file.close()

    def _port(self, host: str) -> int:
        self._file.seek(0)
        known = self._file.read()
        port = free_port(host, int(known) if known.isdecimal() else 0)
        self._file.truncate(0)
        self._file.write(str(port))
        self._file.flush()
        return port


def free_port(host: str, wanted: int = 0) -> int:
    """`wanted` if nobody listens there, else another one. If another program takes it before it is used, the server ends and says so."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that was there before are no reason
        try:
            probe.bind((host, wanted))
        except OSError:
            if not wanted:
                raise
            return free_port(host)
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """In the child: a parent that is killed cannot stop it, and a server without a parent would go on holding its store's lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
