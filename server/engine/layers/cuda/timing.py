"""How long the device works on trunk and heads: by events around what is launched, read in a later step, so that no step waits for them.

The host's clock says when work was launched. On a GPU that is long before it is done.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from polyhead.server.engine.work.reports import Counters

MOST_UNREAD = 1000  # pairs of events


class DeviceTimes:
    """Adds to the engine's counters. Belongs to the engine's thread."""

    def __init__(self, counters: Counters, cuda: Any = torch.cuda) -> None:
        self._counters = counters
        self._cuda = cuda
        self._unread: collections.deque[tuple[str, Any, Any]] = collections.deque(maxlen=MOST_UNREAD)

    @contextlib.contextmanager
    def measuring(self, part: str) -> Iterator[None]:
        """What is launched within counts for `<part>_seconds_us`."""
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._unread.append((f"{part}_seconds_us", begin, end))

    def collect(self) -> None:
        """Count what has ended; the rest later."""
        while self._unread and self._unread[0][2].query():
            name, begin, end = self._unread.popleft()
            setattr(self._counters, name, getattr(self._counters, name) + int(begin.elapsed_time(end) * 1e3))
