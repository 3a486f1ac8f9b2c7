"""A block: a run of tokens, the slot that holds what was computed for them, and the head blocks under it. Plain data."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field


class OutOfBlocks(Exception):
    """A pool was asked for more blocks than its `num_available`: an error of the scheduler, never of a caller."""


@dataclass(eq=False, repr=False, slots=True)
class HeadBlock:
    """Keys and values of one head digest for one block's tokens."""

    slot: int
    digest: str
    block: Block
    num_computed: int = 0
    num_users: int = 0  # readings on it
    writer: object | None = None  # the reading that computes it; only compared by identity
    last_used: int = 0


@dataclass(eq=False, repr=False, slots=True)
class Block:
    """A run of tokens and the slot that holds what the trunk computed for them."""

    slot: int
    tokens: list[int]
    parent: Block | None  # None for a root, which holds no tokens
    children: dict[int, list[Block]] = field(default_factory=dict)  # by first token
    num_computed: int = 0
    num_users: int = 0  # sequences that hold it
    writer: object | None = None  # the sequence that computes it; only compared by identity
    head_blocks: dict[str, HeadBlock] = field(default_factory=dict)  # by digest
    last_used: int = 0
    salt: str = ""  # of a root

    def shared_prefix(self, tokens: list[int], start: int) -> int:
        """How many of this block's tokens equal tokens[start:]."""
        count = 0
        for own, other in zip(self.tokens, itertools.islice(tokens, start, start + len(self.tokens)), strict=False):
            if own != other:
                break
            count += 1
        return count
