"""Which servers of the tests are forked."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.forked import ForkedServer, kind_of_start


def test_what_only_a_new_process_reads_starts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose sitecustomize turns the garbage collector off would have had it on, and its tests could not have failed."""
    monkeypatch.setenv("POLYHEAD_MAX_IDLE_PER_NAME", "1")
    assert kind_of_start() is ForkedServer
    monkeypatch.setenv("PYTHONPATH", "/folder/with/sitecustomize")
    assert kind_of_start() is subprocess.Popen
