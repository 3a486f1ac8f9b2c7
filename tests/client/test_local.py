"""A server process of one's own: ready with its line, its end told with its log, and gone with whoever started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from polyhead.client.errors import Unavailable
from polyhead.client.local import LocalServer

READY = """
import json, sys, time
print("starting", *sys.argv[1:], file=sys.stderr, flush=True)
if "--bad" in sys.argv:
    sys.exit(2)
print(json.dumps({"host": "127.0.0.1", "port": 1, "metrics_port": 2}), flush=True)
time.sleep(600)
"""
COMMAND = [sys.executable, "-c", READY]
PARENT = f"""
import time
from polyhead.client.local import LocalServer
print(LocalServer.start(command={COMMAND!r}).process.pid, flush=True)
time.sleep(600)
"""
SERVER = """#!/bin/sh
echo '{"host": "127.0.0.1", "port": 1}'
exec sleep 600
"""
OWNER = """
import sys
sys.executable = sys.argv[1]
from polyhead.client.local import local_server
with local_server() as server:
    print(server.process.pid, flush=True)
    server.process.wait()
"""


def test_sigterm_ends_the_server_with_its_owner(tmp_path: Path) -> None:
    """`make rlhf` that was killed left its server running: it ended on the spot, without leaving the block."""
    (tmp_path / "server").write_text(SERVER)
    (tmp_path / "server").chmod(0o755)
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "server")], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        owner.send_signal(signal.SIGTERM)
        assert owner.wait(timeout=60) == 128 + signal.SIGTERM
        try:
            with pytest.raises(ProcessLookupError):
                os.kill(server, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)


def test_a_server_is_ready_with_its_line_and_its_end_is_told_with_the_log() -> None:
    lines: list[str] = []
    server = LocalServer.start(["--port", "7"], lines.append, COMMAND)
    try:
        assert server.address == "127.0.0.1:1"
        server.check()
        server.process.kill()
        server.process.wait(30)
        with pytest.raises(Unavailable, match=r"exit status -9:\nstarting --port 0 --metrics-port 0 --json-ready --port 7"):
            server.check()
        assert lines == ["starting --port 0 --metrics-port 0 --json-ready --port 7"]
    finally:
        server.stop(0.1)


def test_a_server_that_cannot_start_is_an_error_with_its_log() -> None:
    with pytest.raises(Unavailable, match=r"exit status 2:\nstarting .* --bad"):
        LocalServer.start(["--bad"], command=COMMAND)
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        LocalServer.start(command=["/no-such-program"])


def test_a_server_outlives_the_thread_that_asked_for_it() -> None:
    """Linux ends such a child with the thread that forked it, not with the process: Ray starts replicas in a thread of a pool."""
    started: list[LocalServer] = []
    thread = threading.Thread(target=lambda: started.append(LocalServer.start(command=COMMAND)))
    thread.start()
    thread.join(60)
    [server] = started
    try:
        assert _state(server.process.pid) not in "ZX"
        server.check()
    finally:
        server.stop(5.0)
    assert server.process.returncode == -signal.SIGTERM, "it lived until it was told to end"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_parent_that_is_killed_leaves_no_server_that_holds_its_store() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    ends_at = time.monotonic() + 30
    while _state(child) != "Z":
        assert time.monotonic() < ends_at, "the server outlived its parent"
        time.sleep(0.01)


def _state(pid: int) -> str:
    """As /proc has it; Z for a process that is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"
