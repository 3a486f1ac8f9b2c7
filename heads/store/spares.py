"""Descriptors held back, so that a store whose process has no others left can still be read and changed. Knows no files."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable

NUM_SPARES = 16  # an activation has three open at the same time, a push two for as long as it lasts
_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE})


class SpareDescriptors:
    """A few descriptors of nothing. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[int] = []
        self._is_closed = False
        self.refill()

    def attempt(self, open_one: Callable[[], int]) -> int:
        """What `open_one` returns; where the process has no descriptor left, a spare one makes way for it. OSError."""
        while True:
            try:
                return open_one()
            except OSError as error:
                if error.errno not in _NONE_LEFT or not self._give_up_one():
                    raise

    def refill(self) -> None:
        """Take back what was given up, as far as the process has descriptors again."""
        if len(self._held) >= NUM_SPARES or self._is_closed:
            return
        with self._lock, contextlib.suppress(OSError):
            while len(self._held) < NUM_SPARES and not self._is_closed:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def close(self) -> None:
        """Give all up for good; may be called twice."""
        with self._lock:
            self._is_closed = True
            while self._held:
                os.close(self._held.pop())

    def _give_up_one(self) -> bool:
        with self._lock:
            if self._held:
                os.close(self._held.pop())
                return True
            return False
