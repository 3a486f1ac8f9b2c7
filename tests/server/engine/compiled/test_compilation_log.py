"""A first start compiles for up to a minute: it says so before, and only then. Two first starts at once compile once."""

from __future__ import annotations

import errno
import fcntl
import logging
import threading
from pathlib import Path

import numba
import pytest
from numba import types

from polyhead.server.engine.compiled.region import announcing_compilation, one_process


def doubled(x: float) -> float:
    return 2.0 * x


def test_only_a_start_that_compiles_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The first start was silent for up to a minute, and looked hung."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("polyhead"), "propagate", True)
    caplog.set_level(logging.INFO)

    def said_while_compiling() -> list[str]:
        caplog.clear()
        with announcing_compilation():
            assert numba.cfunc(types.float64(types.float64), cache=True)(doubled).ctypes(1.5) == 3.0
        return [record.message for record in caplog.records if record.name.startswith("polyhead")]

    (line,) = said_while_compiling()
    assert line.startswith("compiling the layers for this machine: up to a minute, once")
    assert said_while_compiling() == [], "the second time it was read from the disk"


def test_of_two_processes_that_start_together_one_compiles(tmp_path: Path) -> None:
    """Each compiled for a minute, and both had half a processor for it."""
    inside: list[str] = []

    def second() -> None:
        with one_process(tmp_path / "lock", limit_s=60.0):
            inside.append("second")

    thread = threading.Thread(target=second)
    with one_process(tmp_path / "lock", limit_s=60.0):
        thread.start()
        thread.join(0.2)
        assert not inside
        inside.append("first")
    thread.join(30.0)
    assert inside == ["first", "second"]


def test_a_stopped_process_does_not_keep_others_from_starting(tmp_path: Path) -> None:
    with one_process(tmp_path / "lock", limit_s=60.0), one_process(tmp_path / "lock", limit_s=0.1):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with one_process(tmp_path / "lock", limit_s=60.0):
        pass
