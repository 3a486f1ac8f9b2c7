"""Pauses in long work, decided by the caller: the work calls `pause_point` between two pieces, and its context says what that does.

A server pauses while its engine is busy (server/host/pacing.py); a command line never does. Nothing is passed through signatures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Pause = Callable[[int], None]  # takes how many bytes were received since the last call, 0 for work of one's own

_pause: ContextVar[Pause | None] = ContextVar("pause", default=None)


def pause_point(num_received: int = 0) -> None:
    """Call between two pieces of long work, on the thread that does it, holding no lock that short work needs."""
    pause = _pause.get()
    if pause is not None:
        pause(num_received)


@contextlib.contextmanager
def pausing(pause: Pause | None) -> Iterator[None]:
    """Long work in this block pauses in this way; with None it does not pause, for what holds a lock."""
    token = _pause.set(pause)
    try:
        yield
    finally:
        _pause.reset(token)
