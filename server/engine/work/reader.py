"""How results reach whoever asked for them: events, and the reader whose unread bytes are counted. The engine never waits for a reader."""

from __future__ import annotations

from typing import Protocol


class Event:
    """Something that a request's reader is told (events.py has the kinds)."""


class Reader(Protocol):
    """Counts what was made for a caller and not yet read."""

    def has_room(self, num_begun: int, num_bytes: int) -> bool:
        """Whether `num_bytes` of states may be made before more is read, beside the `num_begun` bytes of samples that run."""

    def hold(self, num_bytes: int) -> None:
        """Count `num_bytes` as unread from now on."""


class ReadAtOnce:
    """A reader within the same process: nothing stays unread."""

    def has_room(self, num_begun: int, num_bytes: int) -> bool:
        return True

    def hold(self, num_bytes: int) -> None:
        pass
