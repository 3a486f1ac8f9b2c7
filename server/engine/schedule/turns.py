"""The order in which waiting samples start: fair among principals by tokens, first come first served within one. Knows no blocks.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). A sample's turn, in tokens, is where its principal's earlier samples end, or where
the queue is now if these have started: a principal with few samples is served between those of one with many, and turns cannot be saved.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from polyhead.server.engine.work.request import Priority, Sample


class Turns:
    """Hands out turns. The engine's thread alone calls it."""

    def __init__(self) -> None:
        self._now = dict.fromkeys(Priority, 0)  # turn of the sample that started last
        self._ends: dict[tuple[Priority, str], int] = {}  # where a principal's samples end
        self._starts: dict[tuple[Priority, str], int] = {}  # where those end that have started
        self._num_waiting: collections.Counter[tuple[Priority, str]] = collections.Counter()
        self._gaps: set[tuple[Priority, str]] = set()  # whose queue lost samples: the others of the same principal move up

    def give(self, sample: Sample) -> None:
        """The sample's place in the queue: behind those of its own principal."""
        kind = _kind(sample)
        sample.turn = max(self._now[sample.request.priority], self._ends.get(kind, 0))
        self._ends[kind] = sample.turn + sample.most_tokens
        self._num_waiting[kind] += 1

    def start(self, sample: Sample) -> None:
        """A sample has its turn."""
        priority = sample.request.priority
        self._now[priority] = max(self._now[priority], sample.turn)
        self._starts[_kind(sample)] = sample.turn + sample.most_tokens
        self._num_waiting[_kind(sample)] -= 1

    def leave(self, sample: Sample) -> None:
        """A sample leaves the queue without its turn. Once its principal has none waiting, the tokens of those that left do not count."""
        kind = _kind(sample)
        self._num_waiting[kind] -= 1
        if self._num_waiting[kind]:
            self._gaps.add(kind)
            return
        del self._num_waiting[kind]
        self._gaps.discard(kind)
        self._ends.pop(kind, None)
        self._starts.pop(kind, None)

    def close_gaps(self, waiting: Sequence[Sample]) -> bool:
        """Give back the turns of those who left: samples behind them move up. `waiting`: in the order of their turns. Whether any moved."""
        if not self._gaps:
            return False
        ends: dict[tuple[Priority, str], int] = {}
        for sample in waiting:
            kind = _kind(sample)
            if kind in self._gaps:
                free_at = ends.get(kind, self._starts.get(kind, 0))
                sample.turn = min(sample.turn, max(self._now[sample.request.priority], free_at))
                ends[kind] = sample.turn + sample.most_tokens
        self._ends |= ends
        self._gaps.clear()
        return True


def _kind(sample: Sample) -> tuple[Priority, str]:
    return sample.request.priority, sample.request.principal
