"""Server processes without the imports: `polyhead serve` forked off a process that has imported torch and transformers already.

A start takes 10 seconds of CPU otherwise, 9 of them for imports, and the tests start a hundred servers. What is forked is a process of
its own that runs the command line from its first line on: its arguments, environment, signals, exit status and end are those of a server
that a person starts. Tests of the start itself, of memory and of the embedded model run the real command (`local_server`).
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = "polyhead.client.cli.main"
MOST_BYTES = 1 << 20  # of a request: arguments and environment
_parents: list[tuple[int, socket.socket]] = []  # this process's own, with its pid: a fork must not use its parent's


class ForkedServer:
    """What tests use of `subprocess.Popen`, for a server that is a grandchild of the process with the imports."""

    def __init__(self, command: Sequence[str], **pipes: Any) -> None:
        assert command[:3] == [sys.executable, "-m", COMMAND], command
        assert pipes == {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}, pipes
        (output, output_end), (errors, errors_end), (self._status, status_end) = os.pipe(), os.pipe(), os.pipe()
        request = json.dumps({"arguments": list(command[3:]), "environment": dict(os.environ), "folder": os.getcwd()}).encode()
        fds = [output_end, errors_end, status_end]
        _parent().sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        for fd in fds:
            os.close(fd)
        self.stdout, self.stderr = os.fdopen(output, encoding="utf-8"), os.fdopen(errors, encoding="utf-8")
        self.returncode: int | None = None
        self.pid = int(self._read_status())

    def _read_status(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(self._status, 1)
            assert piece, "the process that forks servers has ended"
            line += piece
        return line.decode()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(COMMAND, timeout or 0.0)
            self.returncode = int(self._read_status())
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left on its stdout and stderr, when it has ended. A server writes no more to stdout than a pipe holds."""
        errors, output = ("" if file.closed else file.read() for file in (self.stderr, self.stdout))
        self.wait(timeout)
        self.stdout.close()
        self.stderr.close()
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its status is on the way here
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _for_the_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that are read when a process starts or imports: what is forked has its parent's."""
    prefixes = ("PYTHON", "LD_", "MALLOC_", "OMP_", "GOMP_", "MKL_", "NUMBA_", "HF_", "XDG_", "HOME")
    return {name: value for name, value in environment.items() if name.startswith(prefixes)}


_OF_THE_PARENT = _for_the_interpreter(os.environ)


def kind_of_start() -> type[ForkedServer] | type[subprocess.Popen[str]]:
    """A fork, unless a test has set what only a new process reads."""
    return ForkedServer if _for_the_interpreter(os.environ) == _OF_THE_PARENT else subprocess.Popen


def start(command: Sequence[str], **pipes: Any) -> ForkedServer | subprocess.Popen[str]:
    return kind_of_start()(command, **pipes)


FORKED = SimpleNamespace(Popen=start, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)  # in place of `subprocess`


def _parent() -> socket.socket:
    """The socket to this process's own parent of servers, which is started when the first test asks."""
    if not _parents or _parents[0][0] != os.getpid():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("POLYHEAD_")}  # of the first server alone
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=clean)
        theirs.close()
        _parents[:] = [(os.getpid(), ours)]
        atexit.register(lambda: (process.kill(), process.wait()))
    return _parents[0][1]


def _import_what_a_server_needs() -> None:
    from polyhead.server.host.pacing import bound_spinning

    bound_spinning()  # as `serve` does before torch is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import polyhead.client.cli.app
    import polyhead.server.process.card
    import polyhead.server.process.lifecycle  # noqa: F401


def _fork_servers(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request until the tests have ended. Returns in a server's process, with its request, and nowhere else."""
    while True:
        message, fds, _, _ = socket.recv_fds(requests, MOST_BYTES, 3)
        if not message:
            sys.exit()
        if not os.fork():
            requests.close()
            if not (pid := os.fork()):
                return json.loads(message), fds
            _report(pid, fds)
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _report(pid: int, fds: list[int]) -> None:
    """In the server's own parent: say its process id, wait for its end, say its exit status."""
    for fd in (0, 1, 2, *fds[:2]):
        os.close(fd)
    os.write(fds[2], b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(fds[2], b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """What a new process of this command finds."""
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    for fd in fds:
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [COMMAND, *request["arguments"]]
    from polyhead.heads.store import failpoints

    failpoints.arm_from(os.environ)  # done at its import otherwise


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests and the servers
    own = socket.socket(fileno=int(sys.argv[1]))
    _import_what_a_server_needs()
    _become(*_fork_servers(own))
    runpy.run_module(COMMAND, run_name="__main__", alter_sys=True)
