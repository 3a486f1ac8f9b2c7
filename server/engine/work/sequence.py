"""A run of token ids on its way through the trunk, and the blocks that hold what comes out. Plain data; the tree of blocks fills it."""

from __future__ import annotations

from dataclasses import dataclass, field

from polyhead.server.engine.work.block import Block


# Sequences and blocks refer to each other: a generated repr would print all of them, again and again.
@dataclass(eq=False, repr=False, slots=True)
class TokenSequence:
    """Token ids that go through the trunk, and the blocks that hold their keys, values and boundary states."""

    tokens: list[int]
    salt: str = ""
    num_wanted: int = 0  # tokens whose boundary states are needed
    blocks: list[Block] = field(default_factory=list)
    is_placed: bool = False
    num_computed: int = 0  # tokens whose boundary states exist
    num_cached: int = 0  # of those, found in the cache at placement
    num_trunk_tokens: int = 0  # that went through the trunk for it, those given up and computed again counted again
    num_reserved: int = 0  # blocks promised to this sequence and not yet taken
    next_slot: int = 0  # taken for its next block before the tokens of that are known; 0: none

    @property
    def num_outstanding(self) -> int:
        return self.num_wanted - self.num_computed
