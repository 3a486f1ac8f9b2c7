"""What all tests share: one server process on the embedded model, its whole-model reference, one audited tiny server, hypothesis.

Nothing heavy is imported before a test asks for it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from polyhead.client import Client
from polyhead.client.local import LocalServer, local_server
from tests import overdue
from tests.parallel import start_order

settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.load_profile("deterministic")

os.environ["POLYHEAD_COMMIT_CACHES"] = "false"  # a resident set is what was used, and many servers share one machine
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes start: each would compile every module that it imports
sys.dont_write_bytecode = False
os.environ["TRITON_INTERPRET"] = "1"  # read where triton is imported, which any test may do: tests/triton runs kernels on the CPU
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of torch, which is not imported yet: as many processes as cores run tests already

NUM_THREADS = 2  # of the embedded model's server, and of the reference that runs while it waits
_AUDIT = """
import sys

def _write_down(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        with open({file!r}, "a", encoding="utf-8") as file:
            address = arguments[0] if event.startswith("socket.get") else arguments[1]
            file.write(f"{{event}}\\t{{address if isinstance(address, str) else address[0] if address else address}}\\n")

sys.addaudithook(_write_down)
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from tests.parallel import UnitScheduling

    return UnitScheduling(config, log)


def pytest_configure() -> None:
    overdue.keep_stderr()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Beside other processes of the run, that wait for this one: a test that is stuck ends, whatever it waits for."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with overdue.watching(item.nodeid):
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=start_order)


def pytest_collection_finish() -> None:
    """What is imported and collected stays: a collection in a test need not look at a million objects of libraries."""
    gc.collect()
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The browser's tests have an environment of their own: they run where they are named, as `make test-web` does."""
    is_web = collection_path == Path(__file__).parent / "web"
    return True if is_web and not any("tests/web" in argument for argument in config.args) else None


@dataclass(frozen=True)
class RunningServer:
    """A server process that several tests talk to."""

    local: LocalServer
    rss_at_start: int  # bytes, measured before its first request

    @property
    def address(self) -> str:
        return self.local.address

    @property
    def rss(self) -> int:
        """Bytes of its resident set, now."""
        return int(psutil.Process(self.local.process.pid).memory_info().rss)


@dataclass(frozen=True)
class AuditedServer:
    """A server on a tiny model, with reflection, that writes down where its Python code connects to."""

    local: LocalServer
    audit_file: Path  # a line each: event, tab, address

    @property
    def address(self) -> str:
        return self.local.address


@pytest.fixture(scope="session")
def smollm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The embedded model with its five first heads: one process for the whole run."""
    from tests.e2e.forked import wait_until_compiled

    store = tmp_path_factory.mktemp("smollm") / "store"
    # a process that compiles keeps the compiler's memory, 270 MiB of it: the server whose memory is measured finds the machine code on disk
    wait_until_compiled()
    with local_server(["--store", str(store), "--threads", str(NUM_THREADS)]) as local:
        yield RunningServer(local, RunningServer(local, 0).rss)


@pytest.fixture(scope="module")
def smollm(smollm_server: RunningServer) -> Iterator[Client]:
    """A client of that server. Whatever a module activated, the next one finds the first heads again."""
    with Client(smollm_server.address, timeout=300.0) as client:
        yield client
        first = next(generation for generation in client.generations() if generation.parent == 0)
        if client.status().active != first.heads:
            client.rollback(to=first.number)


@pytest.fixture(scope="session")
def audited_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedServer]:
    """The hook is set by a sitecustomize module, so before the first line of ours or of a library's."""
    from tests.e2e.tiny import save_tiny_llama

    folder = tmp_path_factory.mktemp("audited")
    model = folder / "model"
    save_tiny_llama(model)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_AUDIT.format(file=str(folder / "audit.txt")), encoding="utf-8")
    (folder / "audit.txt").touch()
    search_path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH", "")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", search_path)
        running = local_server([str(model), "--store", str(folder / "store"), "--cache-bytes", str(64 << 20), "--reflection"])
        with running as local:
            patch.undo()
            yield AuditedServer(local, folder / "audit.txt")
