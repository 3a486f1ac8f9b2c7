"""Work beside the engine pauses for as long as it worked, what is received comes slowly, and both only while requests run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polyhead.server.host import cgroups
from polyhead.server.host.pacing import MAX_PAUSE_S, MAX_SPINS, RECEIVED_BYTES_PER_S, Pacer, bound_spinning, has_spare_core
from polyhead.server.rpc.services.heads import GATHERED_BYTES


class Thread:
    """A clock of work, and the pauses that were made."""

    def __init__(self, has_spare_core: bool = False) -> None:
        self.worked, self.is_idle, self.pauses = 5.0, False, list[float]()
        self.pace = Pacer(lambda: self.is_idle, has_spare_core, self.pauses.append, lambda: self.worked)
        self.pace()

    def work(self, seconds: float) -> None:
        self.worked += seconds
        self.pace()


def test_pauses_are_as_long_as_the_work() -> None:
    thread = Thread()
    assert thread.pauses == [], "what the thread did before is nobody's business"
    thread.work(0.02)
    thread.work(0.0)
    thread.work(0.05)
    assert [round(pause, 6) for pause in thread.pauses] == [0.02, 0.05]


def test_one_long_piece_is_not_answered_by_a_long_pause() -> None:
    thread = Thread()
    thread.work(7.0)
    assert thread.pauses == [MAX_PAUSE_S]


def test_a_push_is_received_slowly() -> None:
    """The thread that writes a chunk down has worked for little of what it cost to receive it."""
    thread = Thread()
    thread.worked += 0.001
    thread.pace(RECEIVED_BYTES_PER_S // 50)
    thread.worked += 0.05
    thread.pace(RECEIVED_BYTES_PER_S // 50)
    thread.is_idle = True
    thread.pace(RECEIVED_BYTES_PER_S // 50)
    assert [round(pause, 6) for pause in thread.pauses] == [0.02, 0.05]


def test_a_spare_core_receives_as_fast_as_it_comes_and_builds_no_faster() -> None:
    thread = Thread(has_spare_core=True)
    thread.worked += 0.001
    thread.pace(RECEIVED_BYTES_PER_S // 50)
    thread.work(0.02)
    assert [round(pause, 6) for pause in thread.pauses] == [0.001, 0.02]


def test_what_comes_at_once_keeps_the_rate() -> None:
    """A pause has an end, so a piece may not be larger than what it may hold up."""
    assert GATHERED_BYTES <= MAX_PAUSE_S * RECEIVED_BYTES_PER_S


@pytest.mark.parametrize(
    ("own", "quotas", "num_cores"),
    [
        ("0::/", {}, 4),
        ("0::/", {"": "max 100000"}, 4),
        ("0::/", {"": "250000 100000"}, 2),
        ("0::/", {"": "900000 100000"}, 4),
        ("1:cpu:/else\n0::/system.slice/a.service\n", {"system.slice": "300000 100000", "system.slice/a.service": "max 100000"}, 3),
    ],
)
def test_a_core_is_spare_if_the_engine_does_not_take_them_all(
    own: str, quotas: dict[str, str], num_cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A quota may be less than the cores that the process sees: a container's, or that of any cgroup above its own."""
    (tmp_path / "own").write_text(own)
    for folder, quota in quotas.items():
        (tmp_path / "fs" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / folder / "cpu.max").write_text(quota)
    monkeypatch.setattr(cgroups, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 8, 9})
    assert [has_spare_core(num_threads) for num_threads in (1, 2, 3, 4, 5)] == [num_threads < num_cores for num_threads in (1, 2, 3, 4, 5)]


def test_an_idle_engine_needs_no_cores() -> None:
    thread = Thread()
    thread.is_idle = True
    thread.work(0.05)
    thread.is_idle = False
    thread.work(0.01)
    assert [round(pause, 6) for pause in thread.pauses] == [0.01]


def test_threads_that_wait_sleep_soon_unless_the_operator_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    bound_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == MAX_SPINS
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    bound_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
