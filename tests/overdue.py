"""What ends a test that is over its time where an exception cannot: its cleanup waits for a process, a call or a thread.

pytest-timeout raises in the test after LIMIT_S. A test that then waits for ever in a `with` or a `finally` would hide the failure until
whoever runs the tests gives up. So its processes are killed, which ends every wait for them and for calls to them; if it still has
not ended, the process that runs it prints where each thread is and ends. pytest's own faulthandler_timeout is not enough: it is
cancelled as soon as a test has failed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache

import psutil

LIMIT_S = 300.0  # `timeout` in pyproject.toml
KILL_AFTER_S = LIMIT_S + 30.0
END_AFTER_S = LIMIT_S + 60.0


_stderr = sys.__stderr__


def keep_stderr() -> None:
    """Before pytest takes it to capture what tests print."""
    global _stderr
    _stderr = os.fdopen(os.dup(2), "w", encoding="utf-8")


@contextlib.contextmanager
def watching(node_id: str) -> Iterator[None]:
    """Around a test with its fixtures."""
    _watch().current = node_id, time.monotonic()
    try:
        yield
    finally:
        _watch().current = None


class Watch:
    """Looks once a second at how long the current test has run."""

    def __init__(self) -> None:
        self.current: tuple[str, float] | None = None  # its id; time.monotonic() of its start
        threading.Thread(target=self._run, name="overdue-tests", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(1.0)
            if (current := self.current) is not None:
                self.check(current[0], time.monotonic() - current[1])

    def check(self, node_id: str, taken_s: float) -> None:
        """End its processes, or this one."""
        if taken_s > END_AFTER_S:
            say(f"{node_id} has not ended after {taken_s:.0f} s: its process ends")
            faulthandler.dump_traceback(_stderr or 2)
            while kill_youngest(psutil.Process(), set()):
                time.sleep(0.1)
            os._exit(1)
        from tests.e2e.forked import parents  # reads the environment, which conftest.py has still to set when this module is imported

        # who forks servers goes on: it keeps nothing open, and the next test needs it
        if taken_s > KILL_AFTER_S and (killed := kill_youngest(psutil.Process(), parents())):
            say(f"{node_id} has not ended after {taken_s:.0f} s: killed {', '.join(killed)}")


@cache
def _watch() -> Watch:
    return Watch()


def say(text: str) -> None:
    """Past pytest, which keeps what a test prints until the test has ended."""
    print(f"\n{text}", file=_stderr, flush=True)


def kill_youngest(root: psutil.Process, spared: set[int]) -> list[str]:
    """Kill the processes below `root` that have no process below them; what they were. `spared`: process ids."""
    killed = []
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.pid not in spared and process.status() != psutil.STATUS_ZOMBIE and not process.children():
                killed.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
                process.kill()
    return killed
