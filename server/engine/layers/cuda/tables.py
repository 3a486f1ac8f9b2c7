"""Block tables of decoding texts, kept on the device: a step sends the slots of blocks that are new, and which row is whose.

A text of 4096 tokens has 256 blocks of 16: its whole table at every step would be 64 times 256 numbers of a batch of 64, made by Python and
sent, though one block in 16 steps is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class HasSlot(Protocol):
    """A block of a trunk or of a head."""

    @property
    def slot(self) -> int: ...


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One text's next token in a decode step."""

    first: int  # token id for a trunk, row of its state for a head
    position: int
    blocks: Sequence[HasSlot]  # of the text so far: the list that grows with it, and so stands for the text
    next_slot: int = 0  # of the block behind these, where the token is the first of one that is not there yet

    def slot(self, index: int) -> int:
        return self.blocks[index].slot if index < len(self.blocks) else self.next_slot

    def write_row(self, block_size: int) -> int:
        """Row of the cache where its keys and values go."""
        return self.slot(self.position // block_size) * block_size + self.position % block_size


@dataclass(slots=True)
class _Sent:
    """What the device has of one text."""

    row: int
    blocks: Sequence[HasSlot]  # held, so that no other list gets its identity
    num_blocks: int = 0
    last: HasSlot | None = None  # of those; a text that was placed anew has another one there
    next_slot: int = 0  # sent for the block behind these, before it was there


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step changes in the table, and where its texts are in it."""

    rows: list[int]
    at: list[int]  # places in the flat table
    slots: list[int]  # that go there


class BlockTables:
    """(num_rows, width) slots on the device. The rows of texts that were not used for the longest time are taken for new ones."""

    def __init__(self, num_rows: int, width: int, block_size: int, device: torch.device) -> None:
        self.table = torch.zeros(num_rows, width, dtype=torch.int32, device=device)
        self.width = width
        self._block_size = block_size
        self._sent: dict[int, _Sent] = {}  # by identity of a text's list of blocks, the longest unused first
        self._free = list(range(num_rows - 1, -1, -1))

    def update(self, texts: Sequence[DecodeRow]) -> Delta:
        """What must be sent for a step of these texts, of which there are at most as many as rows."""
        found = [self._found(text) for text in texts]
        delta = Delta([sent.row for sent in found], [], [])
        for text, sent in zip(texts, found, strict=True):
            num_needed = text.position // self._block_size + 1
            for index in range(sent.num_blocks, num_needed):
                slot = text.slot(index)
                if index > sent.num_blocks or slot != sent.next_slot:
                    delta.at.append(sent.row * self.width + index)
                    delta.slots.append(slot)
            sent.num_blocks = min(num_needed, len(text.blocks))
            sent.last = text.blocks[sent.num_blocks - 1] if sent.num_blocks else None
            sent.next_slot = text.next_slot if num_needed > len(text.blocks) else 0
        return delta

    def _found(self, text: DecodeRow) -> _Sent:
        """The text's entry, which is now the last used."""
        key, blocks = id(text.blocks), text.blocks
        sent = self._sent.pop(key, None)
        if sent is None:
            sent = _Sent(self._take_row(), blocks)
        elif sent.num_blocks and (len(blocks) < sent.num_blocks or blocks[sent.num_blocks - 1] is not sent.last):
            sent.num_blocks = sent.next_slot = 0  # a block's way to the root never changes: with the same last one all are the same
        self._sent[key] = sent
        return sent

    def _take_row(self) -> int:
        if not self._free:
            self._free.append(self._sent.pop(next(iter(self._sent))).row)
        return self._free.pop()
