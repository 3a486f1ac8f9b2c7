"""Server processes without the imports: `polyhead serve` forked off a process that has imported torch and transformers already.

A start takes 10 seconds of CPU otherwise, 0.4 here, and the tests start a hundred servers. What is forked is a process of
its own that runs the command line from its first line on: its arguments, environment, signals, exit status and end are those of a server
that a person starts. Tests of the start itself, of memory and of the embedded model run the real command (`local_server`).
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn, Self

ROOT = Path(__file__).parents[2]
COMMAND = "polyhead.client.cli.main"
MOST_BYTES = 1 << 20  # of a request: arguments and environment
CONSTANTS = "TESTS_CONSTANTS"  # variable: {"module.NAME": value} in JSON, set before the command begins
MOST_S = 240.0  # for a command that ends by itself: less than a test has
# Of the process that uses them, as a fork must not use its parent's, and by what they have imported.
_parents: dict[tuple[int, str], socket.socket] = {}
_started: list[subprocess.Popen[bytes]] = []  # those processes


class ForkedServer:
    """What tests use of `subprocess.Popen`, for a process that is a grandchild of the one with the imports."""

    imports = "server"

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.PIPE,
        text: bool = False,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        preexec_fn: Callable[[], None] | None = None,  # for a child of the tests' own process, which this is not
        ends_with_us: bool = True,  # killed when the process that has started it is gone
    ) -> None:
        assert command[0] == sys.executable, command
        assert stdout == subprocess.PIPE
        encoding = {"mode": "r", "encoding": "utf-8"} if text else {"mode": "rb"}
        (input_end, given), (output, output_end), (self._status, status_end) = os.pipe(), os.pipe(), os.pipe()
        self.stdin = os.fdopen(given, "wb")
        self.stdout = os.fdopen(output, **encoding)
        if isinstance(stderr, int):
            errors, errors_end = os.pipe()
            self.stderr = os.fdopen(errors, **encoding)
        else:
            self.stderr, errors_end = None, os.dup(stderr.fileno())
        if stdin in (None, subprocess.DEVNULL):
            self.stdin.close()
        environment = dict(os.environ if env is None else env)
        request = {"command": command[1:], "environment": environment, "folder": os.getcwd(), "is_leader": start_new_session}
        request["ends_with_us"] = ends_with_us
        parent, fds = _parent(self.imports), [input_end, output_end, errors_end, status_end]
        rights = array.array("i", [*fds, parent.fileno()])
        parent.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        for fd in fds:
            os.close(fd)
        self.args = list(command)
        self.returncode: int | None = None
        try:
            if not select.select([self._status], [], [], MOST_S)[0]:
                raise subprocess.TimeoutExpired(COMMAND, MOST_S)
            self.pid = int(self._read_status())
        except BaseException:
            os.close(self._status)  # whatever is forked in the end is killed
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.kill()  # nobody asks it to end any more
        self.wait()

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
        """What is left on its stdout and stderr, when it has ended."""
        texts = [_read_beside(file) for file in (self.stdout, self.stderr)]  # one alone could fill its pipe while the other is read
        if futures.wait(texts, timeout).not_done:
            raise subprocess.TimeoutExpired(COMMAND, timeout or 0.0)
        self.wait(timeout)
        self.stdout.close()
        self.stderr.close()
        return texts[0].result(), texts[1].result()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its status is on the way here
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedStore(ForkedServer):
    """A process that uses the store and nothing else: 10 ms in place of 150."""

    imports = "store"


class ForkedLibrary(ForkedServer):
    """A process that uses the store and the configurations in it."""

    imports = "library"


def _for_the_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that are read when a process starts or imports: what is forked has its parent's."""
    prefixes = ("PYTHON", "LD_", "MALLOC_", "OMP_", "GOMP_", "MKL_", "NUMBA_", "HF_", "XDG_", "HOME")
    return {name: value for name, value in environment.items() if name.startswith(prefixes)}


_OF_THE_PARENT = _for_the_interpreter(os.environ)


def kind_of_start(environment: Mapping[str, str] = os.environ) -> type[ForkedServer] | type[subprocess.Popen[str]]:
    """A fork, unless a test has set what only a new process reads."""
    return ForkedServer if _for_the_interpreter(environment) == _OF_THE_PARENT else subprocess.Popen


def start(command: Sequence[str], **options: Any) -> ForkedServer | subprocess.Popen[str]:
    kind: Any = kind_of_start(options.get("env") or os.environ) if command[0] == sys.executable else subprocess.Popen
    return kind(command, **options)  # type: ignore[no-any-return]


def finished(command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` for a command of ours, text captured. It is killed after MOST_S: TimeoutExpired."""
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        output, errors = process.communicate(MOST_S)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.wait(), output, errors)


def wait_until_compiled() -> None:
    """The parent of servers loads the machine code of the layers, and makes it where nobody has: then it forks whatever is asked for."""
    assert finished([sys.executable, "-m", "platform"]).returncode == 0


FORKED = SimpleNamespace(
    Popen=start, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired, run=subprocess.run
)
"""In place of `subprocess`."""


def _start_rank(command: Sequence[str], **_: object) -> ForkedServer:
    return ForkedServer(command, stdout=subprocess.PIPE, stderr=os.fdopen(os.dup(2), "wb"), ends_with_us=False)  # it sees to that itself


FORKED_RANKS = SimpleNamespace(**{**vars(FORKED), "Popen": _start_rank})


def _parent(imports: str) -> socket.socket:
    """The socket to this process's own parent of servers, or of stores, which is started when the first test asks."""
    if (os.getpid(), imports) not in _parents:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), imports]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("POLYHEAD_")}  # of the first server alone
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=clean)
        theirs.close()
        _parents[os.getpid(), imports] = ours
        _started.append(process)
        atexit.register(lambda: (process.kill(), process.wait()))
    return _parents[os.getpid(), imports]


def parents() -> set[int]:
    """Process ids of those that fork servers and stores."""
    return {process.pid for process in _started}


def _read_beside(file: IO[Any]) -> Future[Any]:
    """All that comes until the other end is closed, in a thread that nobody has to wait for."""
    text: Future[Any] = Future()

    def read() -> None:
        try:
            text.set_result("" if file.closed else file.read())
        except BaseException as error:
            text.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    return text


def _import_what_a_server_needs() -> None:
    from polyhead.server.host.pacing import bound_spinning

    bound_spinning()  # as `serve` does before torch is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import polyhead.client.cli.app
    import polyhead.server.process.card
    import polyhead.server.process.lifecycle  # noqa: F401
    from polyhead.server.engine.compiled.region import region

    region()  # machine code of the layers: 0.4 s from the disk, a minute where nobody has compiled yet
    from polyhead.server.parallel import children, rank  # noqa: F401
    from tests.e2e import forked

    children.subprocess = forked.FORKED_RANKS  # type: ignore[attr-defined]  # other ranks of a server are forked as it is
    gc.collect()
    gc.freeze()  # a collection in each server would look at all of the libraries' objects, and copy the pages that they lie on


def _fork_servers(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request until the tests have ended. Returns in a server's process, with its request, and nowhere else."""
    while True:
        message, fds, _, _ = socket.recv_fds(requests, MOST_BYTES, 5)
        if not message:
            sys.exit()
        if not os.fork():
            requests.close()
            request = json.loads(message)
            if not (pid := os.fork()):
                return request, fds
            _report(pid, fds, request["ends_with_us"])
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _report(pid: int, fds: list[int], ends_with_us: bool) -> NoReturn:
    """In the server's own parent: say its process id, wait for its end, say its exit status. A test whose time is over may have gone away
    before its server was there: then nobody reads, and the server is killed."""
    given, output, errors, own, parent = fds
    for fd in (0, 1, 2, given, output, errors, parent):
        os.close(fd)
    with contextlib.suppress(BrokenPipeError):
        os.write(own, b"%d\n" % pid)
    if ends_with_us:
        events = select.poll()
        events.register(own, 0)  # a pipe that nobody reads any more is an error, which is told unasked
        events.register(os.pidfd_open(pid), select.POLLIN)
        if own in dict(events.poll()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(own, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: dict[str, Any], fds: list[int]) -> Callable[[], object]:
    """What a new process of this command finds; what it runs."""
    if request["is_leader"]:
        os.setsid()
    for fd, number in zip(fds, (0, 1, 2), strict=False):
        os.dup2(fd, number)
    for fd in fds[:4]:
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    from polyhead.heads.store import failpoints
    from tests.e2e import forked

    failpoints.arm_from(os.environ)  # done at its import otherwise
    for place, value in json.loads(os.environ.pop(CONSTANTS, "{}")).items():
        module, _, name = place.rpartition(".")
        assert hasattr(sys.modules[module], name), place
        setattr(sys.modules[module], name, value)
    forked._parents[os.getpid(), ForkedServer.imports] = socket.socket(fileno=fds[4])  # for processes that this one starts
    match request["command"]:
        case ["-m", module, *arguments]:
            sys.argv = [module, *arguments]
            return partial(runpy.run_module, module, run_name="__main__", alter_sys=True)
        case [script, *arguments]:
            sys.argv = [script, *arguments]
            sys.path.insert(0, str(Path(script).parent))
            return partial(runpy.run_path, script, run_name="__main__")
    raise AssertionError(request["command"])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests and the servers
    own = socket.socket(fileno=int(sys.argv[1]))
    if sys.argv[2] == ForkedServer.imports:
        _import_what_a_server_needs()
    elif sys.argv[2] == ForkedLibrary.imports:
        import tests.server.rewards.test_library  # noqa: F401
    else:
        import polyhead.heads.store.store  # noqa: F401
    _become(*_fork_servers(own))()
