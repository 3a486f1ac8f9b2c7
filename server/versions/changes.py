"""What is changing the active set right now, and how far it is: for the status and the log. Knows nothing of stores and heads."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Change:
    """One change under way; its own thread writes to it."""

    what: str  # "activation of policy@7"
    step: str = "waiting for its turn"
    started_at: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started_at

    def note(self, step: str) -> None:
        """The next step begins."""
        self.step = step
        log.info("%s: %s (after %.1f s)", self.what, step, self.seconds)


class Changes:
    """Those under way. May be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[Change] = []

    @contextlib.contextmanager
    def begin(self, what: str) -> Iterator[Change]:
        """A change that is under way until the block ends."""
        change = Change(what)
        with self._lock:
            self._running.append(change)
        try:
            yield change
        finally:
            with self._lock:
                self._running.remove(change)

    def running(self) -> list[Change]:
        """The longest running one first."""
        with self._lock:
            return list(self._running)
