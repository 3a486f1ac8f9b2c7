"""Work beside the engine pauses for as long as it worked, what is received comes slowly, and both only while requests run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polyhead.server import breathing
from polyhead.server.breathing import MAX_PAUSE_S, MAX_SPINS, RECEIVED_BYTES_PER_S, Breather, bound_spinning, has_spare_core


class Thread:
    """A clock of work, and the pauses that were made."""

    def __init__(self) -> None:
        self.worked, self.is_idle, self.pauses = 5.0, False, list[float]()
        self.breathe = Breather(lambda: self.is_idle, self.pauses.append, lambda: self.worked)
        self.breathe()

    def work(self, seconds: float) -> None:
        self.worked += seconds
        self.breathe()


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
    thread.breathe.received(RECEIVED_BYTES_PER_S // 50)
    thread.worked += 0.05
    thread.breathe.received(RECEIVED_BYTES_PER_S // 50)
    thread.is_idle = True
    thread.breathe.received(RECEIVED_BYTES_PER_S // 50)
    assert [round(pause, 6) for pause in thread.pauses] == [0.02, 0.05]


@pytest.mark.parametrize(("quota", "num_cores"), [(None, 4), ("max 100000", 4), ("250000 100000", 2), ("900000 100000", 4)])
def test_a_core_is_spare_if_the_engine_does_not_take_them_all(
    quota: str | None, num_cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container's quota may be less than the cores that it sees."""
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(breathing, "CPU_QUOTA", tmp_path / "cpu.max")
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
