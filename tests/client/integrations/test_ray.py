"""What the Ray application is made of, without Ray: the child process, the place of a follower, the number of followers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from polyhead.client.integrations.ray.process import FollowerPlace, ServerProcess
from polyhead.client.integrations.ray.scaling import OPEN_REQUESTS, ByOpenRequests

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
from polyhead.client.integrations.ray.process import ServerProcess
print(ServerProcess([], {COMMAND!r}).pid, flush=True)
time.sleep(600)
"""


def test_a_server_is_ready_with_its_line_and_its_end_is_told_with_the_log() -> None:
    lines: list[str] = []
    process = ServerProcess(["--port", "7"], COMMAND, lines.append)
    try:
        assert process.ready["metrics_port"] == 2
        process.check()
        os.kill(process.pid, signal.SIGKILL)
        process._process.wait()
        with pytest.raises(RuntimeError, match=r"exit status -9:\nstarting --port 7 --metrics-port 0 --json-ready"):
            process.check()
        assert lines == ["starting --port 7 --metrics-port 0 --json-ready"]
    finally:
        process.stop(0.1)


def test_a_server_that_cannot_start_is_an_error_with_its_log() -> None:
    with pytest.raises(RuntimeError, match="exit status 2:\nstarting --bad"):
        ServerProcess(["--bad"], COMMAND)


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


def test_followers_of_a_node_have_places_of_their_own_and_find_them_again(tmp_path: Path) -> None:
    first, second = FollowerPlace(tmp_path / "a", "127.0.0.1"), FollowerPlace(tmp_path / "a", "127.0.0.1")
    assert first.store != second.store
    assert first.port != second.port
    left = (second.store, second.port)
    second.leave()
    again = FollowerPlace(tmp_path / "a", "127.0.0.1")
    assert (again.store, again.port) == left
    first.leave()
    again.leave()


@pytest.mark.parametrize(("reported", "count"), [({}, 3), ({"a": 0.0}, 0), ({"a": 4.0, "b": 4.0}, 2), ({"a": 9.0}, 3)])
def test_one_follower_for_so_many_open_requests(reported: dict[str, float], count: int) -> None:
    """Without a report the number stays; Ray keeps it between min and max."""
    context = SimpleNamespace(aggregated_metrics={OPEN_REQUESTS: reported}, target_num_replicas=3)
    assert ByOpenRequests(4)(context) == (count, {})
