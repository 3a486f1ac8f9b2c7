"""A pass as numbers: what rank 0 says, and the others read. Tokens and slots; nothing of requests, names, versions or generations."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from polyhead.server.engine.layers.plan import Segment
from polyhead.server.engine.work.batch import HeadRun, TrunkRun


class Order(enum.IntEnum):
    """The first number of each message."""

    END = 0
    TRUNK = 1  # changes of slots, TrunkPass
    HEAD = 2  # changes of slots, HeadPass
    CANARY = 3  # number of a head, tokens
    FORGET = 4  # numbers of heads


class Reader:
    """Takes numbers off a message, from its beginning."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers, self._at = numbers, 0

    def one(self) -> int:
        self._at += 1
        return self._numbers[self._at - 1]

    def many(self) -> list[int]:
        """A list that its length stands before."""
        count = self.one()
        self._at += count
        return self._numbers[self._at - count : self._at]


@dataclass(frozen=True, slots=True)
class Places:
    """Where rows stand, and from which position on each segment's keys are new."""

    segments: list[Segment]
    new_from: list[int]

    @property
    def positions(self) -> list[int]:
        return [position for segment in self.segments for position in range(segment.start, segment.end)]

    def write(self, out: list[int], block_size: int) -> None:
        out.append(len(self.segments))
        for segment, first_new in zip(self.segments, self.new_from, strict=True):
            slots = segment.slots[: -(-segment.end // block_size)]
            out += (segment.start, segment.end, first_new, len(slots))
            out += slots

    @classmethod
    def read(cls, numbers: Reader) -> Places:
        segments, new_from = [], []
        for _ in range(numbers.one()):
            start, end, first_new = numbers.one(), numbers.one(), numbers.one()
            segments.append(Segment(numbers.many(), start, end))
            new_from.append(first_new)
        return cls(segments, new_from)


@dataclass(frozen=True, slots=True)
class TrunkPass:
    """New tokens that go through the trunk, as one flat row."""

    tokens: list[int]
    places: Places

    @classmethod
    def of(cls, runs: Sequence[TrunkRun]) -> TrunkPass:
        segments = [Segment([block.slot for block in run.sequence.blocks], run.start, run.end) for run in runs]
        tokens = [token for run in runs for token in run.sequence.tokens[run.start : run.end]]
        return cls(tokens, Places(segments, [run.start for run in runs]))

    def write(self, out: list[int], block_size: int) -> None:
        out.append(len(self.tokens))
        out += self.tokens
        self.places.write(out, block_size)

    @classmethod
    def read(cls, numbers: Reader) -> TrunkPass:
        return cls(numbers.many(), Places.read(numbers))


@dataclass(frozen=True, slots=True)
class HeadPass:
    """Boundary states that go through one head's layers."""

    head: int  # its number
    places: Places
    asked: Places | None  # of the rows whose output is wanted; None: all
    state_rows: list[int]  # of the cache of boundary states
    wanted: list[int]  # rows of the pass

    @classmethod
    def of(cls, head: int, runs: Sequence[HeadRun], state_rows: list[int], wanted: list[int]) -> HeadPass:
        segments = [Segment([block.slot for block in run.reading.head_blocks], run.start, run.end) for run in runs]
        asked = None
        if any(run.num_rows != run.end - run.start for run in runs):
            some = [run for run in runs if run.num_rows]
            rows = [Segment([block.slot for block in run.reading.head_blocks], run.first_row, run.end) for run in some]
            asked = Places(rows, [run.end for run in some])
        return cls(head, Places(segments, [run.first_new_key for run in runs]), asked, state_rows, wanted)

    def write(self, out: list[int], block_size: int) -> None:
        out.append(self.head)
        self.places.write(out, block_size)
        out.append(self.asked is not None)
        if self.asked is not None:
            self.asked.write(out, block_size)
        for rows in (self.state_rows, self.wanted):
            out.append(len(rows))
            out += rows

    @classmethod
    def read(cls, numbers: Reader) -> HeadPass:
        head, places = numbers.one(), Places.read(numbers)
        asked = Places.read(numbers) if numbers.one() else None
        return cls(head, places, asked, numbers.many(), numbers.many())


@dataclass(slots=True)
class SlotChanges:
    """What rank 0 did to slots since the last pass: the others do it before the next one."""

    _numbers: list[int] = field(default_factory=list)

    def clear(self, cache: Order, slot: int) -> None:
        """`cache`: TRUNK or HEAD."""
        self._numbers += (cache, slot, -1, 0)

    def copy(self, cache: Order, source: int, target: int, num_tokens: int) -> None:
        self._numbers += (cache, target, source, num_tokens)

    def take(self, out: list[int]) -> None:
        out.append(len(self._numbers) // 4)
        out += self._numbers
        self._numbers.clear()
