"""An interrupt that Python drops is raised again."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from polyhead.client import interrupt
from polyhead.client.interrupt import repeated_interrupt


class Pressed:
    """Ctrl-C arrives while it is freed: Python drops what a finalizer raises."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def interruptible(work: Callable[[], None]) -> None:
    with repeated_interrupt():
        work()


def busy(seconds: float) -> None:
    """In short steps, as training is."""
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        time.sleep(0.001)


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    monkeypatch.setattr(interrupt, "REPEAT_S", 0.05)
    return found


def test_an_interrupt_that_falls_into_a_finalizer_ends_the_block(dropped: list[Any]) -> None:
    def work() -> None:
        Pressed()
        assert [each.exc_type for each in dropped] == [KeyboardInterrupt]
        busy(30.0)  # a failure of the test: pytest.raises sees no interrupt

    with pytest.raises(KeyboardInterrupt):
        interruptible(work)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_raised_behind_the_block(dropped: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: signal.raise_signal(signal.SIGINT))
    busy(0.2)
    assert dropped == []


def test_cleaning_up_that_waits_for_ever_is_interrupted(dropped: list[Any]) -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            busy(30.0)

    with pytest.raises(KeyboardInterrupt):
        interruptible(work)


def test_an_ignored_signal_stays_ignored() -> None:
    """As in a command that a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with repeated_interrupt():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
