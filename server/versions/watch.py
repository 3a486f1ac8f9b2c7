"""Tells watchers of each new generation. A slow watcher never holds anybody up: it reads from the history at its own pace."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator

from polyhead.heads.format.errors import Unavailable


class GenerationFeed:
    """Announces numbers from any thread to coroutines of event loops. Holds no records, so nothing piles up.

    An announcement is one call into each event loop, however many watch there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest = 0
        self._is_closed = False
        self._changed: dict[asyncio.AbstractEventLoop, asyncio.Event] = {}  # set once, at the next announcement; then replaced by a new one

    def announce(self, number: int) -> None:
        """A new generation is active."""
        with self._lock:
            self._latest = number
        self._wake()

    def close(self) -> None:
        """End every watch with Unavailable: the server is going away."""
        with self._lock:
            self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            loops = list(self._changed)
        for loop in loops:
            with contextlib.suppress(RuntimeError):  # the watchers' event loop is gone
                loop.call_soon_threadsafe(self._tell, loop)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            changed, self._changed[loop] = self._changed[loop], asyncio.Event()
        changed.set()

    async def numbers(self, after: int) -> AsyncGenerator[int, None]:
        """Each generation number after `after`, in order; waits for more until closed."""
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                changed = self._changed.setdefault(loop, asyncio.Event())  # before the comparison: a later announcement sets this one
            if self._is_closed:
                raise Unavailable("the server is shutting down", retry_after_s=2.0)
            while after < self._latest:
                after += 1
                yield after
            await changed.wait()
