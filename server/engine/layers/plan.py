"""A step as layers see it: where its tokens stand, where their keys go, and by which back end they attend. Knows no kernel.

A plan is made once a step and arrives in every layer's call as the keyword argument `plan`, never through a global.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.layers.cuda.upload import upload


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of one sequence's tokens in a step."""

    slots: list[int]  # of the blocks that hold its tokens, up to `end`
    start: int  # position of the first new token
    end: int  # one past the position of the last


class AttentionBackend(Protocol):
    """One way to attend over cached blocks: torch/attention.py, cuda/varlen.py, and that of the compiled layers (compiled/stack.py)."""

    @property
    def name(self) -> str:
        """For people: "torch", "compiled", or a GPU kernel's."""
        ...

    @property
    def reads_past_ends(self) -> bool:
        """Whether it multiplies by 0 what lies past a sequence's end in its last block: then slots are cleared when they are taken."""
        ...

    def prepare(self, cache: KvCache, segments: list[Segment], /) -> Any:
        """What it needs to know of a step's segments, computed once for all layers: `StepPlan.prepared`."""

    def attend(
        self, plan: StepPlan, layer: int, queries: Tensor, scale: float, window: int, softcap: float | None = None, /
    ) -> Tensor:
        """Attend over keys that are written. `queries` and the result: (tokens, heads, head_dim).

        A window of W lets a token see itself and the W - 1 before it; 0 means all.
        """


@dataclass(slots=True)
class StepPlan:
    """Where a step's tokens are written and what they attend to. Made once a step, used by every layer."""

    cache: KvCache
    attention: AttentionBackend
    write_rows: Tensor  # (new keys,) rows of the cache where they go
    new_rows: Tensor | None  # (new keys,) rows of the batch where they stand; None: in all of them
    prepared: Any  # what the back end made of the segments; read by that back end alone
    asked: StepPlan | None = None  # of the rows whose output is asked for, if those are not all: for a head's last layer
    state_rows: Tensor | None = None  # `write_rows` on the heads' device, set by the trunk where that is another
    taps: Tensor | None = None  # (cache rows, d_model), set by the trunk: takes the tap layer's states at `write_rows`
    instead: StepPlan | None = None  # for the back end that takes over from one that has failed, which makes it

    @classmethod
    def build(cls, cache: KvCache, attention: AttentionBackend, segments: list[Segment], new_from: Iterable[int]) -> StepPlan:
        """Plan a step. `new_from[i]`: position from which segment i's keys are new; earlier ones are cached and only queried."""
        write_rows, new_rows, num_rows = new_keys(segments, new_from, cache.shape.block_size)
        written, new = upload((write_rows, [] if len(new_rows) == num_rows else new_rows), cache.shape.device)
        return cls(cache, attention, written, None if len(new_rows) == num_rows else new, attention.prepare(cache, segments))

    def keep_tap(self, states_TD: Tensor) -> None:
        """Keep the states that enter the tap layer, if `taps` is set."""
        if self.taps is not None:
            self.taps.index_copy_(0, self.write_rows, states_TD)

    def write(self, layer: int, kv: Tensor) -> None:
        """Store the step's new keys and values of a layer, (tokens, 2, kv_heads, head_dim)."""
        if self.new_rows is None:
            self.cache.write(layer, self.write_rows, kv)
        elif len(self.write_rows):
            self.cache.write(layer, self.write_rows, kv[self.new_rows])


def new_keys(segments: list[Segment], new_from: Iterable[int], size: int) -> tuple[list[int], list[int], int]:
    """Rows of the cache for the step's new keys, the rows of the batch where they stand, and how many rows the batch has."""
    write_rows, new_rows, row = [], [], 0
    for segment, first_new in zip(segments, new_from, strict=True):
        for position in range(max(segment.start, first_new), segment.end):
            write_rows.append(segment.slots[position // size] * size + position % size)
            new_rows.append(row + position - segment.start)
        row += segment.end - segment.start
    return write_rows, new_rows, row
