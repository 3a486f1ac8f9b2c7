"""Slots for heads' own keys and values, which belong to the trunk's blocks, by head digest. Knows no tree and no scheduling."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.work.block import Block, HeadBlock, OutOfBlocks
from polyhead.server.engine.work.request import Reading


@dataclass(frozen=True, slots=True)
class Twin:
    """Another block that begins with the same tokens, with a head's keys for them: two texts that part inside the block."""

    index: int  # of the block whose twin it is, among those of a reading
    head_block: HeadBlock
    num_common: int  # tokens


class HeadPool:
    """Slots for heads' own keys and values. Those that no reading uses are evicted, the longest unused first."""

    def __init__(self, cache: KvCache) -> None:
        self.cache = cache
        self.block_size = cache.shape.block_size
        self.num_slots = cache.num_slots - 1
        self.num_idle = 0  # computed, and no reading on them
        self._free = list(range(cache.num_slots - 1, 0, -1))
        self._idle: list[tuple[int, int, HeadBlock]] = []  # heap with stale entries
        self._clock = itertools.count(1)

    @property
    def num_available(self) -> int:
        return len(self._free) + self.num_idle

    @property
    def num_filled(self) -> int:
        return self.num_slots - len(self._free)

    def num_needed(self, blocks: list[Block], digest: str) -> int:
        """Head blocks that a reading over `blocks` takes out of `num_available`."""
        held = (block.head_blocks.get(digest) for block in blocks)
        return sum(1 for head_block in held if head_block is None or head_block.num_users == 0)

    def is_pending(self, blocks: list[Block], digest: str) -> bool:
        """Whether another reading is computing keys that a reading over `blocks` would need."""
        held = (block.head_blocks.get(digest) for block in blocks)
        if any(head_block is not None and head_block.writer is not None for head_block in held):
            return True
        twin = self._twin(blocks, digest)
        return twin is not None and twin.head_block.num_computed < twin.num_common

    def begin(self, reading: Reading, blocks: list[Block]) -> None:
        """Give a reading its first head blocks. Keys that a twin has of the same tokens are copied, as the trunk's were."""
        self.hold(reading, blocks)
        twin = self._twin(blocks, reading.head.live.digest)
        if twin is not None:
            target = reading.head_blocks[twin.index]
            self.cache.copy(twin.head_block.slot, target.slot, twin.num_common)
            target.num_computed = twin.num_common

    def hold(self, reading: Reading, blocks: list[Block]) -> None:
        """Give a reading the head blocks of `blocks` that it has not got yet; it computes those that are not complete."""
        for block in blocks[len(reading.head_blocks) :]:
            head_block = block.head_blocks.get(reading.head.live.digest)
            if head_block is None:
                head_block = self._take(block, reading.head.live.digest, reading.next_slot)
                reading.next_slot = 0
            elif head_block.num_users == 0:
                self.num_idle -= 1
            head_block.num_users += 1
            if head_block.num_computed < self.block_size:
                head_block.writer = reading
            reading.head_blocks.append(head_block)

    def slot_ahead(self, reading: Reading, position: int) -> int:
        """The slot of the head block that will begin at `position`, before its block is there; 0 if the last one has room."""
        if position // self.block_size < len(reading.head_blocks):
            return 0
        if not reading.next_slot:
            reading.next_slot = self._take_slot()
            reading.num_reserved = max(0, reading.num_reserved - 1)
        return reading.next_slot

    def num_computed(self, reading: Reading) -> int:
        """Tokens from the start whose keys are there."""
        count = 0
        for head_block in reading.head_blocks:
            count += head_block.num_computed
            if head_block.num_computed < self.block_size:
                break
        return count

    def advance(self, reading: Reading, start: int, end: int) -> None:
        """Record that the keys of positions [start, end) are there."""
        for index in range(start // self.block_size, -(-end // self.block_size)):
            head_block = reading.head_blocks[index]
            head_block.num_computed = max(head_block.num_computed, min(end - index * self.block_size, self.block_size))
            if head_block.num_computed == self.block_size and head_block.writer is reading:
                head_block.writer = None

    def release(self, reading: Reading) -> None:
        """Give back a reading's head blocks and what it was promised; what was computed stays cached until its slot is needed."""
        for head_block in reversed(reading.head_blocks):  # a text's end is evicted first: what is left is still its start
            if head_block.writer is reading:
                head_block.writer = None
            head_block.num_users -= 1
            if head_block.num_users == 0:
                self._idle_now(head_block)
        if reading.next_slot:
            self._free.append(reading.next_slot)
        reading.head_blocks = []
        reading.num_reserved = reading.next_slot = 0

    def forget_block(self, block: Block) -> None:
        """Free what heads computed for a trunk block that is removed."""
        for head_block in list(block.head_blocks.values()):
            assert head_block.num_users == 0, "a reading holds a block that no sequence holds"
            self._free_one(head_block)

    def forget_digest(self, digest: str, blocks: list[Block]) -> None:
        """Free a head's idle keys: it is no longer in memory."""
        for block in blocks:
            head_block = block.head_blocks.get(digest)
            if head_block is not None and head_block.num_users == 0:
                self._free_one(head_block)

    def check(self, head_blocks: list[HeadBlock]) -> None:
        """Assert that every slot is accounted for exactly once."""
        slots = [head_block.slot for head_block in head_blocks] + self._free
        assert sorted(slots) == list(range(1, self.num_slots + 1)), "a head slot is lost or held twice"
        assert self.num_idle == sum(1 for head_block in head_blocks if not head_block.num_users), "num_idle is wrong"

    def _twin(self, blocks: list[Block], digest: str) -> Twin | None:
        """Where the keys of `blocks` end inside a block: the sibling that has, or will have, most of the tokens that come next."""
        for index, block in enumerate(blocks):
            own = block.head_blocks.get(digest)
            num_own = own.num_computed if own is not None else 0
            if num_own == self.block_size:
                continue
            assert block.parent is not None, "a block that a sequence holds is in the tree"
            best, most = None, num_own
            for sibling in block.parent.children[block.tokens[0]]:
                other = sibling.head_blocks.get(digest)
                if sibling is not block and other is not None:
                    num_common = sibling.shared_prefix(block.tokens, 0)
                    num_kept = num_common if other.writer is not None else min(num_common, other.num_computed)
                    best, most = (other, num_kept) if num_kept > most else (best, most)
            return Twin(index, best, most) if best is not None else None
        return None

    def _take(self, block: Block, digest: str, slot: int = 0) -> HeadBlock:
        """`slot`: one that was taken before."""
        head_block = HeadBlock(slot or self._take_slot(), digest, block)
        block.head_blocks[digest] = head_block
        return head_block

    def _take_slot(self) -> int:
        if not self._free:
            self._evict_one()
        slot = self._free.pop()
        self.cache.clear(slot)
        return slot

    def _idle_now(self, head_block: HeadBlock) -> None:
        self.num_idle += 1
        head_block.last_used = next(self._clock)
        heapq.heappush(self._idle, (head_block.last_used, id(head_block), head_block))
        if len(self._idle) > 2 * self.num_slots:  # mostly stale: entries are popped only when no slot is free
            self._idle = [entry for entry in self._idle if _is_idle(entry)]
            heapq.heapify(self._idle)

    def _evict_one(self) -> None:
        while self._idle:
            entry = heapq.heappop(self._idle)
            if _is_idle(entry):
                self._free_one(entry[2])
                return
        raise OutOfBlocks("no head block is free and none can be evicted")

    def _free_one(self, head_block: HeadBlock) -> None:
        del head_block.block.head_blocks[head_block.digest]
        self.num_idle -= 1
        self._free.append(head_block.slot)


def _is_idle(entry: tuple[int, int, HeadBlock]) -> bool:
    """Whether a heap entry is current: the head block may have been used or freed since it was pushed."""
    last_used, _, head_block = entry
    is_current = head_block.block.head_blocks.get(head_block.digest) is head_block
    return is_current and head_block.num_users == 0 and head_block.last_used == last_used
