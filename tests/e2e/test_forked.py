"""Which servers of the tests are forked, and that none outlives them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.forked import ForkedServer, ForkedStore, kind_of_start
from tests.e2e.support import eventually


def test_what_only_a_new_process_reads_starts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose sitecustomize turns the garbage collector off would have had it on, and its tests could not have failed."""
    monkeypatch.setenv("POLYHEAD_MAX_IDLE_PER_NAME", "1")
    assert kind_of_start() is ForkedServer
    monkeypatch.setenv("PYTHONPATH", "/folder/with/sitecustomize")
    assert kind_of_start() is subprocess.Popen


def test_a_process_whose_test_is_gone_is_killed(tmp_path: Path) -> None:
    """As when a test ran out of time while its server was being forked."""
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(600)\n")
    process = ForkedStore([sys.executable, str(tmp_path / "sleeps.py")])
    assert process.poll() is None
    os.close(process._status)
    eventually(lambda: not psutil.pid_exists(process.pid), what="its end")
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()
