"""What ends a process that hangs, and what systemd is told."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from polyhead.server.engine.work.reports import EngineSnapshot
from polyhead.server.process.watchdog import LOOP_SILENCE_S, Watchdog, notify_systemd
from tests.server.fakes import IDLE

LIMIT_S = 300.0


class Host:
    """A clock, an engine's numbers, and what the watchdog did."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.at = 1000.0
        self.engine: EngineSnapshot = dataclasses.replace(IDLE, last_step_at=self.at, num_open=1, is_running=True)
        self.ended: list[str] = []
        self.told: list[str] = []
        self.watchdog = Watchdog(lambda: self.engine, limit_s, end=self.ended.append, notify=self.told.append, now=lambda: self.at)

    def look_after(self, seconds: float, *, loop_goes_round: bool = True) -> None:
        self.at += seconds
        if loop_goes_round:
            self.watchdog.beat()
        self.watchdog.check()


    def look_for(self, seconds: int) -> None:
        """Once a second, as the thread does."""
        for _ in range(seconds):
            self.look_after(1.0)


def test_a_step_that_never_ends_ends_the_process() -> None:
    """It stayed NOT_SERVING for ever, with every call open."""
    host = Host()
    host.look_for(int(LIMIT_S))
    assert (host.ended, host.told) == ([], ["WATCHDOG=1"] * int(LIMIT_S))
    host.look_after(1.0)
    assert host.ended == ["the engine hangs: 1 requests are open, and a step has taken 301 s"]
    assert len(host.told) == LIMIT_S


def test_a_process_that_was_stopped_does_not_hang() -> None:
    """SIGSTOP or a paused container: the clock has gone on, the step has not. A step that still does not end does hang."""
    host = Host()
    host.look_after(10 * LIMIT_S)
    host.look_for(int(LIMIT_S) - 1)
    assert host.ended == []
    host.look_after(1.0)
    assert len(host.ended) == 1


def test_an_engine_with_nothing_to_do_does_not_hang() -> None:
    host = Host()
    host.engine = dataclasses.replace(host.engine, num_open=0)
    host.look_for(2 * int(LIMIT_S))
    assert host.ended == []


def test_no_limit() -> None:
    host = Host(limit_s=0.0)
    host.look_for(2 * int(LIMIT_S))
    assert host.ended == []


def test_an_engine_whose_thread_has_ended_ends_the_process() -> None:
    host = Host()
    host.engine = dataclasses.replace(host.engine, num_open=0, is_running=False)
    host.look_after(1.0)
    assert host.ended == ["the engine's thread has ended"]


def test_an_event_loop_that_hangs_is_not_called_alive() -> None:
    host = Host()
    host.look_after(LOOP_SILENCE_S, loop_goes_round=False)
    assert (host.ended, host.told) == ([], [])
    host.look_after(1.0)
    assert host.told == ["WATCHDOG=1"]


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, is_abstract: bool) -> None:
    address = f"@polyhead-test-{tmp_path.name}" if is_abstract else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + address[1:] if is_abstract else address)
        receiver.settimeout(20.0)
        notify_systemd("READY=1", {"NOTIFY_SOCKET": address})
        assert receiver.recv(64) == b"READY=1"
    notify_systemd("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notify_systemd("READY=1", {})
