"""Leaves the cores to the engine: what is built beside it works half of the time while requests run, and all of it while none does.

A pass of the engine waits for the slowest of its threads, so that a third busy thread on two cores makes every step twice as long.
Knows neither what is built nor what runs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

MAX_PAUSE_S = 0.1  # after one piece that took long
MAX_SPINS = "3000"  # a tenth of a millisecond


def bound_spinning() -> None:
    """Call before torch is imported: threads that wait go to sleep soon. What the environment says stays.

    About 150 times a step the engine's threads wait for the slowest of them. By GNU OpenMP's own choice they spin for milliseconds
    meanwhile, on a core that the slowest thread, or a push, may need.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", MAX_SPINS)


class Breather:
    """Call it between two pieces of work, on the thread that does the work."""

    def __init__(
        self,
        is_idle: Callable[[], bool],
        sleep: Callable[[float], None] = time.sleep,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        self._is_idle = is_idle
        self._sleep = sleep
        self._worked = worked  # seconds that this thread has computed, since whenever
        self._last = threading.local()

    def __call__(self) -> None:
        """Pause for as long as this thread has worked since the last call, unless the engine has nothing to do."""
        now = self._worked()
        seconds = now - getattr(self._last, "worked", now)
        self._last.worked = now
        if seconds > 0 and not self._is_idle():
            self._sleep(min(seconds, MAX_PAUSE_S))
