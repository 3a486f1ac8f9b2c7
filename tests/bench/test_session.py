"""Turns are taken, the first round does not count, and one side's failure is its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from polyhead.client.bench.interrupt import Interrupt
from polyhead.client.bench.plan import Plan
from polyhead.client.bench.session import Contender, Session
from polyhead.client.bench.worker import WorkerFailed, WorkerRefused
from tests.bench.test_worker import ENGINE


@pytest.fixture
def session() -> Session:
    return Session(Plan(("P1",), (), runs=2, is_quick=True), Interrupt(), lambda text: None)


def counting(name: str, log: list[str]) -> Callable[[], float]:
    def measure() -> float:
        log.append(name)
        return float(len(log))

    return measure


def test_sides_take_turns(session: Session) -> None:
    log: list[str] = []
    ours, theirs = session.interleave([Contender("a", counting("a", log)), Contender("b", counting("b", log))])
    assert log == ["a", "b"] * 3
    assert (ours.values, theirs.values) == ((3.0, 5.0), (4.0, 6.0))
    [cold] = session.interleave([Contender("c", counting("c", log))], has_warm_up=False)
    assert cold.values == (7.0, 8.0)


def test_one_that_fails_stays_failed_and_the_other_goes_on(session: Session) -> None:
    """Also if it was well in the rounds before: half a series is no measurement."""
    rounds = iter([1.0, 2.0])

    def failing() -> float:
        number = next(rounds, None)
        if number is None:
            raise WorkerFailed("out of memory\nin line 7")
        return number

    broken, well = session.interleave([Contender("broken", failing), Contender("well", counting("well", []))])
    assert (broken.values, broken.error) == ((), "out of memory")
    assert well.values == (2.0, 3.0)


def test_a_worker_that_died_is_started_again(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next question. One that cannot be started is not tried again, and says the same."""
    (tmp_path / "fake_engine.py").write_text(ENGINE, encoding="utf-8")
    started: list[str] = []

    def start_of(key: str) -> tuple[Path, str, dict[str, object], dict[str, str]]:
        started.append(key)
        return Path(sys.executable), "fake_engine", {"is_broken": key == "broken"}, {"PYTHONPATH": str(tmp_path)}

    monkeypatch.setattr(session, "_start_of", start_of)
    with session:
        with pytest.raises(WorkerRefused):
            session.ask_worker("well", {"do": "refuse"})
        assert session.ask_worker("well", {"do": "echo", "text": "a"})["said"] == "a"
        assert started == ["well"]
        with pytest.raises(WorkerFailed, match="out of memory"):
            session.ask_worker("well", {"do": "die"})
        assert session.ask_worker("well", {"do": "echo", "text": "b"})["said"] == "b"
        assert started == ["well", "well"]
        for _ in range(2):
            with pytest.raises(WorkerFailed, match="no module named vllm"):
                session.ask_worker("broken", {"do": "echo", "text": "c"})
        assert started == ["well", "well", "broken"]
    assert session.versions["well"] == {"engine": "fake", "version": "1"}
