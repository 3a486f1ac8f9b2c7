"""Ranks that do not come: the start ends with the reason, and nothing of it is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyhead.heads.format.errors import FailedPrecondition, ResourceExhausted
from polyhead.server.config import ServeConfig
from polyhead.server.parallel import children, start
from polyhead.server.parallel.children import how_it_ended
from polyhead.server.parallel.ranks import Ranks, Ready


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("raise SystemExit(7)", FailedPrecondition, "rank 1 ended with status 7 before it was ready\nhint: the log above may say why"),
        ("import os; os.kill(os.getpid(), 9)", ResourceExhausted, "rank 1 was ended by SIGKILL before it was ready"),
    ],
)
def test_a_rank_that_ends_at_once(code: str, kind: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed by the kernel for want of memory: try again. Anything else would happen again."""
    monkeypatch.setattr(children, "start", lambda folder, rank: subprocess.Popen([sys.executable, "-S", "-c", code]))
    ranks = Ranks(2, {"device": "cpu"}, 60.0)
    ranks.start()
    with pytest.raises(kind) as refused:
        ranks.wait()
    assert refused.value.message.startswith(reason)
    ranks.close()
    assert not ranks.folder.exists()


def test_a_start_that_is_given_up_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when rank 0 cannot load its own share: the others are not waited for, whatever they do."""
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(children, "start", lambda folder, rank: subprocess.Popen(command))
    monkeypatch.setattr("polyhead.server.parallel.ranks.END_S", 0.0)
    ranks = Ranks(3, {"device": "cpu"}, 60.0)
    ranks.start()
    ranks.close()
    assert [process.poll() for process in ranks._processes.values()] == [-9] * len(ranks._processes)
    assert not ranks.folder.exists()


def test_a_step_that_outlasts_the_engine_is_no_loss() -> None:
    """A drained server whose last step was long ended with status 72: its ranks had gone while it was at it."""
    ended: list[str] = []
    ranks = Ranks(2, {"device": "cpu"}, 60.0, ended.append)
    ranks.close()
    with pytest.raises(BrokenPipeError), ranks.passing():
        raise BrokenPipeError
    ranks._woken.close()
    assert not ended


def test_a_stranger_is_not_taken_for_a_rank(tmp_path: Path) -> None:
    """Who connects is known by process id."""
    with children.listen(tmp_path) as listener, children.connect(str(tmp_path / children.SOCKET), "passes"):
        met: dict[int, Any] = {1: {}}
        processes: Any = {1: SimpleNamespace(pid=0)}
        children._take(listener.accept()[0], processes, met)
    assert met == {1: {}}


def test_a_long_path_of_temporary_files_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's path has 107 bytes at most."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    folder = children.private_folder()
    try:
        children.listen(folder).close()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not list(long.iterdir())
    finally:
        children.remove(folder)


@pytest.mark.parametrize(("device", "budget"), [("cpu", 750), ("cuda", 600)])
def test_a_budget_is_of_each_rank(device: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU ranks share the machine's memory, of which caches take theirs later; of GPUs the fullest one decides."""
    monkeypatch.setattr(start, "free_memory", lambda name: {"cpu": 2800, "cuda:0": 1000}[name])
    config = ServeConfig(device=device, tensor_parallel=2, cuda_graphs=False, cache_bytes=400)
    assert start._head_budget(config, [Ready(800)]) == budget


def test_how_a_process_ended() -> None:
    assert [how_it_ended(status) for status in (0, 3, -9, -200)] == [
        "ended with status 0",
        "ended with status 3",
        "was ended by SIGKILL",
        "was ended by signal 200",
    ]
