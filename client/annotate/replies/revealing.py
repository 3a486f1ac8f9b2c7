"""Replies while they are written, as a page may see them: every card shows as many characters as the shortest unfinished one has.

So no card runs ahead and none says that it has ended before all have. Knows no page and no database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Revealed:
    """The texts of one turn. `slots`: reply -> the slot in which it is shown."""

    def __init__(self, slots: Sequence[int]) -> None:
        self.slots = list(slots)
        self._texts = ["" for _ in slots]  # by reply
        self._is_finished = [False for _ in slots]

    def add(self, reply: int, text: str) -> None:
        self._texts[reply] += text

    def finish(self, reply: int, text: str) -> None:
        self._texts[reply], self._is_finished[reply] = text, True

    def begin_again(self, reply: int) -> None:
        """It has failed, and is drawn anew: all cards begin again, so that none says which one it was."""
        self._texts[reply], self._is_finished[reply] = "", False

    @property
    def num_shown(self) -> int:
        """Characters of each card that may be seen."""
        unfinished = [len(text) for text, is_finished in zip(self._texts, self._is_finished, strict=True) if not is_finished]
        return min(unfinished) if unfinished else max(map(len, self._texts))

    def since(self, num_sent: int) -> dict[str, Any] | None:
        """What a page that has so many characters of each card lacks: {"from", "texts"}, the texts by slot; None: nothing.
        "from" 0 replaces what is there."""
        num = self.num_shown
        if num == num_sent:
            return None
        start = num_sent if num > num_sent else 0
        by_slot = sorted(zip(self.slots, self._texts, strict=True))
        return {"from": start, "texts": [text[start:num] for _, text in by_slot]}
