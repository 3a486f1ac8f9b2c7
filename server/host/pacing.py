"""Leaves the cores to the engine: while requests run, what is built beside it works half of the time, and what is received comes slowly
unless a core is spare.

A pass of the engine waits for the slowest of its threads, so that a third busy thread on two cores makes every step twice as long.
Knows neither what is built nor what runs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from polyhead.server.host.cgroups import cpu_quotas

MAX_PAUSE_S = 0.1  # after one piece that took long
RECEIVED_BYTES_PER_S = 32 << 20  # at most: of a push's time, the wire and its other end take more than the thread that writes it down
MAX_SPINS = "3000"  # a tenth of a millisecond


def bound_spinning() -> None:
    """Call before torch is imported: threads that wait go to sleep soon. What the environment says stays.

    About 150 times a step the engine's threads wait for the slowest of them. By GNU OpenMP's own choice they spin for milliseconds
    meanwhile, on a core that the slowest thread, or a push, may need.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", MAX_SPINS)


def has_spare_core(num_threads: int) -> bool:
    """Whether this process may use more cores than the engine's so many threads: by its affinity, and by its cgroups' quotas."""
    num_cores = float(len(os.sched_getaffinity(0)))
    return min([num_cores, *cpu_quotas()]) >= num_threads + 1


class Pacer:
    """What `pause_point` does in the server's worker threads: called between two pieces of work, on the thread that does the work."""

    def __init__(
        self,
        is_idle: Callable[[], bool],
        has_spare_core: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        self._is_idle = is_idle
        self._has_spare_core = has_spare_core  # no reason to build without pauses: Python's lock is not spare
        self._sleep = sleep
        self._worked = worked  # seconds that this thread has computed, since whenever
        self._last = threading.local()

    def __call__(self, num_received: int = 0) -> None:
        """Pause for as long as this thread has worked since the last call, unless the engine has nothing to do.

        After `num_received` bytes of an upload, and unless a core is spare, at least for as long as they may take.
        """
        at_least_s = 0.0 if self._has_spare_core else num_received / RECEIVED_BYTES_PER_S
        now = self._worked()
        seconds = max(now - getattr(self._last, "worked", now), at_least_s)
        self._last.worked = now
        if seconds > 0 and not self._is_idle():
            self._sleep(min(seconds, MAX_PAUSE_S))
