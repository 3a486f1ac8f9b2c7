"""Tells watchers of each new generation. A slow watcher never holds anybody up: it reads from the history at its own pace."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator

from polyhead.heads.errors import Unavailable


class GenerationFeed:
    """Announces numbers from any thread to coroutines of one event loop each. Holds no records, so nothing piles up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest = 0
        self._is_closed = False
        self._listeners: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

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
            listeners = list(self._listeners.items())
        for event, loop in listeners:
            with contextlib.suppress(RuntimeError):  # the watcher's event loop is gone
                loop.call_soon_threadsafe(event.set)

    async def numbers(self, after: int) -> AsyncGenerator[int, None]:
        """Each generation number after `after`, in order; waits for more until closed."""
        event = asyncio.Event()
        with self._lock:
            self._listeners[event] = asyncio.get_running_loop()
        try:
            while True:
                event.clear()
                if self._is_closed:
                    raise Unavailable("the server is shutting down", retry_after_s=2.0)
                while after < self._latest:
                    after += 1
                    yield after
                await event.wait()
        finally:
            with self._lock:
                del self._listeners[event]
