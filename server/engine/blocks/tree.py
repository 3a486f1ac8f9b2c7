"""Which slot holds which tokens: a tree of blocks keyed by the chain of token ids, shared by every request and every head.

A block is a run of at most `block_size` tokens whose trunk keys, values and boundary states are kept and evicted together. Its parent is
the block before it, so a path from the root spells a text, and tokens are compared, never hashes of them. A full block is shared; a partly
filled one belongs to the sequence that fills it, and others copy what they have in common with it. A block that is being computed is
waited for.

Each block has, by head digest, the keys and values that heads computed for the same tokens. A new head version finds the block and its
boundary states, and none of the old version's keys. No block is ever removed because a head changed.

Knows tokens and slots; the tensors are in cache.py, and who gets blocks first is decided in scheduler.py.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

from polyhead.server.engine.blocks.cache import TrunkCache
from polyhead.server.engine.blocks.head_pool import HeadPool
from polyhead.server.engine.work.block import Block, OutOfBlocks
from polyhead.server.engine.work.sequence import TokenSequence


@dataclass(slots=True)
class Match:
    """What the tree already has of a text."""

    shared: list[Block]  # full blocks, in order
    partial: Block | None = None  # a block that starts with the next tokens
    num_partial: int = 0  # how many of its tokens can be copied
    pending: Block | None = None  # the block whose tokens another sequence is computing: match again in a later step


class BlockTree:
    """The trunk's blocks: find, place, extend, release, evict."""

    def __init__(self, cache: TrunkCache, heads: HeadPool) -> None:
        self.cache = cache
        self.heads = heads
        self.block_size = cache.kv.shape.block_size
        self.num_slots = cache.kv.num_slots - 1  # slot 0 is never taken
        self.num_cached = 0  # blocks that no sequence holds
        self.num_used = 0  # blocks that some sequence holds
        self._free = list(range(cache.kv.num_slots - 1, 0, -1))
        self._roots: dict[str, Block] = {}  # by salt
        self._evictable: list[tuple[int, int, Block]] = []  # heap with stale entries
        self._clock = itertools.count(1)

    @property
    def num_available(self) -> int:
        """Blocks that can be taken now: free ones, and cached ones that no sequence holds."""
        return len(self._free) + self.num_cached

    def match(self, tokens: list[int], salt: str) -> Match:
        """Follow `tokens` down the tree, taking nothing."""
        found = Match([])
        position = 0
        node = self._roots.get(salt)
        while node is not None and position < len(tokens):
            best, length = self._best_child(node, tokens, position)
            if best is None:
                return found
            if best.num_computed < length and best.writer is not None:
                found.pending = best
                return found
            length = min(length, best.num_computed)
            if length < self.block_size:
                found.partial, found.num_partial = (best, length) if length else (None, 0)
                return found
            found.shared.append(best)
            node = best
            position += length
        return found

    def num_needed(self, match: Match, num_tokens: int) -> int:
        """Blocks that a sequence of `num_tokens` takes out of `num_available`: new ones, and cached ones that no sequence holds yet."""
        held = [*match.shared, match.partial] if match.partial is not None else match.shared
        unheld = sum(1 for block in held if block.num_users == 0)
        return -(-num_tokens // self.block_size) - len(match.shared) + unheld

    def place(self, sequence: TokenSequence, match: Match) -> None:
        """Give a sequence its blocks: share, copy the common start of a partial one, take new ones for the rest."""
        for block in match.shared:
            self._hold(block)
            sequence.blocks.append(block)
        position = len(match.shared) * self.block_size
        if match.partial is not None:
            self._hold(match.partial)  # taking a slot must not evict what is about to be copied
            try:
                copy = self._append(sequence, sequence.tokens[position : position + match.num_partial])
                self.cache.copy(match.partial.slot, copy.slot, match.num_partial)
                copy.num_computed = match.num_partial
            finally:
                self._let_go(match.partial)
            position += match.num_partial
        sequence.num_computed = sequence.num_cached = position
        sequence.is_placed = True
        self.extend(sequence, position)

    def extend(self, sequence: TokenSequence, start: int) -> None:
        """Give every token from `start` on a place in a block of the sequence's own."""
        while start < len(sequence.tokens):
            last = sequence.blocks[-1] if sequence.blocks else None
            if last is None or len(last.tokens) == self.block_size:
                taken = sequence.tokens[start : start + self.block_size]
                self._append(sequence, taken)
            else:
                assert last.writer is sequence, "a partial block belongs to the sequence that fills it"
                taken = sequence.tokens[start : start + self.block_size - len(last.tokens)]
                last.tokens.extend(taken)
            start += len(taken)

    def slot_ahead(self, sequence: TokenSequence, position: int) -> int:
        """The slot of the block that will begin at `position`, before its first token is known; 0 if the last block has room for it."""
        if position // self.block_size < len(sequence.blocks):
            return 0
        if not sequence.next_slot:
            sequence.next_slot = self._take_slot()
            sequence.num_reserved = max(0, sequence.num_reserved - 1)
        return sequence.next_slot

    def advance(self, sequence: TokenSequence, num_tokens: int) -> None:
        """Record that the next `num_tokens` tokens of a sequence have been computed."""
        while num_tokens:
            block = sequence.blocks[sequence.num_computed // self.block_size]
            done = min(num_tokens, len(block.tokens) - block.num_computed)
            block.num_computed += done
            sequence.num_computed += done
            num_tokens -= done
            if block.num_computed == self.block_size:
                block.writer = None

    def release(self, sequence: TokenSequence) -> None:
        """Give back a sequence's blocks. What was computed stays findable; what was not is forgotten."""
        for block in reversed(sequence.blocks):
            if block.writer is sequence:
                block.writer = None
                if block.num_computed < len(block.tokens):
                    self._truncate(block)
            self._let_go(block)
        sequence.blocks.clear()
        if sequence.next_slot:
            self._free.append(sequence.next_slot)
            sequence.next_slot = 0
        sequence.num_computed = sequence.num_reserved = 0
        sequence.is_placed = False

    def forget_digest(self, digest: str) -> None:
        """Free a head's idle keys: it is no longer in memory."""
        for root in self._roots.values():
            self.heads.forget_digest(digest, _descendants(root))

    def slots(self, sequence: TokenSequence) -> list[int]:
        """The sequence's slots, in order."""
        return [block.slot for block in sequence.blocks]

    def check(self) -> None:
        """Assert that every slot is accounted for exactly once. For tests."""
        seen = [block for root in self._roots.values() for block in _descendants(root)]
        slots = [block.slot for block in seen] + self._free
        assert sorted(slots) == list(range(1, self.num_slots + 1)), "a slot is lost or held twice"
        assert self.num_used == sum(1 for block in seen if block.num_users), "num_used is wrong"
        assert self.num_cached == sum(1 for block in seen if not block.num_users), "num_cached is wrong"
        self.heads.check([head_block for block in seen for head_block in block.head_blocks.values()])

    # ---- one block

    def _root(self, salt: str) -> Block:
        return self._roots.setdefault(salt, Block(slot=0, tokens=[], parent=None, salt=salt))

    def _best_child(self, node: Block, tokens: list[int], position: int) -> tuple[Block | None, int]:
        """The child with the longest common start; of equals, one that is computed already."""
        best, best_length = None, 0
        for child in node.children.get(tokens[position], ()):
            length = child.shared_prefix(tokens, position)
            if length > best_length or (best is not None and length == best_length and best.num_computed < length <= child.num_computed):
                best, best_length = child, length
        return best, best_length

    def _append(self, sequence: TokenSequence, tokens: list[int]) -> Block:
        was_promised = not sequence.next_slot
        slot = sequence.next_slot or self._take_slot()  # first: it may remove a root's last block, and the root with it
        sequence.next_slot = 0
        parent = sequence.blocks[-1] if sequence.blocks else self._root(sequence.salt)
        block = Block(slot, list(tokens), parent, num_users=1, writer=sequence)
        parent.children.setdefault(tokens[0], []).append(block)
        self.num_used += 1
        if was_promised:
            sequence.num_reserved = max(0, sequence.num_reserved - 1)
        sequence.blocks.append(block)
        return block

    def _hold(self, block: Block) -> None:
        if block.num_users == 0:
            self.num_cached -= 1
            self.num_used += 1
        block.num_users += 1

    def _let_go(self, block: Block) -> None:
        block.num_users -= 1
        block.last_used = next(self._clock)
        if block.num_users == 0:
            self.num_used -= 1
            self.num_cached += 1
            if not block.tokens:
                self._remove(block)
            elif not block.children:
                self._evictable_now(block)

    def _truncate(self, block: Block) -> None:
        """Drop tokens that were never computed. Blocks after it hold none that were, and are gone already."""
        assert block.parent is not None
        if block.num_computed == 0:
            _detach(block)
        del block.tokens[block.num_computed :]

    # ---- slots

    def _take_slot(self) -> int:
        if not self._free:
            self._evict_one()
        slot = self._free.pop()
        self.cache.clear(slot)
        return slot

    def _evict_one(self) -> None:
        while self._evictable:
            entry = heapq.heappop(self._evictable)
            if _can_evict(entry):
                self._remove(entry[2])
                return
        raise OutOfBlocks("no block is free and none can be evicted")

    def _remove(self, block: Block) -> None:
        """Remove a block that no sequence holds."""
        parent = block.parent
        if block.tokens:
            _detach(block)
        block.parent = None
        self.num_cached -= 1
        self._free.append(block.slot)
        self.heads.forget_block(block)
        if parent is None or parent.children:
            return
        if parent.parent is None:
            assert self._roots.pop(parent.salt) is parent, "a root was replaced while it had blocks"
        elif parent.num_users == 0:
            self._evictable_now(parent)

    def _evictable_now(self, block: Block) -> None:
        heapq.heappush(self._evictable, (block.last_used, id(block), block))
        if len(self._evictable) > 2 * self.num_slots:  # mostly stale: entries are popped only when no slot is free
            self._evictable = [entry for entry in self._evictable if _can_evict(entry)]
            heapq.heapify(self._evictable)


def _can_evict(entry: tuple[int, int, Block]) -> bool:
    """Whether a heap entry is current: the block may have been used or removed since it was pushed."""
    last_used, _, block = entry
    return block.num_users == 0 and not block.children and block.last_used == last_used and block.parent is not None


def _detach(block: Block) -> None:
    assert block.parent is not None
    siblings = block.parent.children[block.tokens[0]]
    siblings.remove(block)
    if not siblings:
        del block.parent.children[block.tokens[0]]


def _descendants(node: Block) -> list[Block]:
    found = []
    stack = [child for children in node.children.values() for child in children]
    while stack:
        block = stack.pop()
        found.append(block)
        stack.extend(child for children in block.children.values() for child in children)
    return found
