"""CUDA graphs of decode steps: what a trunk or a head launches for one token of each sequence, recorded once and launched as one.

A graph is bound to addresses: a step's numbers are sent in one copy to the buffer that it was recorded with, and its rows are padded to a
size that was recorded. A padding row repeats the step's first: it writes the same numbers to the same place, and its output is not read.

Recorded are steps of one new token a sequence and every row's output, on attention that follows a table of blocks (our own, or
FlashAttention 3): gathered blocks change their number with every token. The table stays on the device (tables.py). Prefills, mixed steps,
adapters, plain modules and rows beyond the largest size run as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.layers.cuda.recorder import CudaRecorder, Record, Recording
from polyhead.server.engine.layers.cuda.staging import Staging
from polyhead.server.engine.layers.cuda.tables import BlockTables, DecodeRow
from polyhead.server.engine.layers.cuda.varlen import RaggedRows, VarlenAttention
from polyhead.server.engine.layers.plan import AttentionBackend, StepPlan

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # rows
ROW_BYTES = 3 * 8 + 2 * 4  # of what every step sends: three numbers of 8 bytes and two of 4
MOST_CHANGES = 4096  # of tables in one copy, which are 12 bytes each

logger = logging.getLogger(__name__)

Compute = Callable[[Tensor, Tensor, StepPlan], Tensor]  # ids or rows of states, positions, the step's plan -> output rows


@dataclass(frozen=True, slots=True)
class TokensAhead:
    """Tokens that were drawn on the device and that the host has not read yet."""

    token_ids: Tensor  # (rows drawn,), int64
    order: Sequence[int]  # which of them each row of the step is


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Where recordings of one size read a step's numbers: views of one buffer, in the order in which they are sent."""

    first: Tensor  # int64, as the next two
    positions: Tensor
    write_rows: Tensor
    num_keys: Tensor  # int32, as the next
    table_rows: Tensor


class StepGraphs:
    """Recordings of the layers over one cache, by owner (the trunk, or a head's weights) and size. Made when first needed, or before."""

    def __init__(self, cache: KvCache, attention: VarlenAttention, max_tokens: int, record: Record, cuda: Any = torch.cuda) -> None:
        assert attention.is_paged, "attention in a graph follows a table of blocks"
        device, largest, block_size = cache.shape.device, SIZES[-1], cache.shape.block_size
        self.num_recorded = 0
        self.num_replayed = 0
        self.staging = Staging(largest * (ROW_BYTES + 8) + 12 * MOST_CHANGES, device, cuda)
        self.tables = BlockTables(2 * largest, -(-max_tokens // block_size), block_size, device)
        self._cache = cache
        self._attention = attention
        self._record = record
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._recordings: dict[str, dict[int, Recording]] = {}
        self._is_broken = False

    def can_run(self, num_rows: int, most_tokens: int) -> bool:
        """Whether a step of one new token for each of so many sequences can be recorded; the longest has so many tokens with it."""
        has_room = most_tokens <= self.tables.width * self._cache.shape.block_size
        return not self._is_broken and 0 < num_rows <= SIZES[-1] and has_room

    def run(
        self, owner: str, compute: Compute, rows: Sequence[DecodeRow], taps: Tensor | None = None, ahead: TokensAhead | None = None
    ) -> Tensor:
        """What `compute` returns for these rows, and writes; valid until the next run. With `ahead`, rows' first numbers come from there.

        `compute` may differ between calls only by its owner.
        """
        num_rows = len(rows)
        size = next(size for size in SIZES if size >= num_rows)
        recordings = self._recordings.setdefault(owner, {})
        self._fill(size, rows, ahead)  # before recording, which computes this step
        if size not in recordings and not self._is_recorded(recordings, size, compute, taps):
            return self._computed(size, compute, taps)[:num_rows]
        recordings[size].replay()
        self.num_replayed += 1
        return recordings[size].output[:num_rows]

    def warm(self, owner: str, compute: Compute, size: int, taps: Tensor | None = None) -> None:
        """Record a size ahead of the first step that needs it, as for `run`. Computes on rows of zeros that write to slot 0."""
        recordings = self._recordings.setdefault(owner, {})
        if self._is_broken or size in recordings:
            return
        inputs = self._inputs(size)
        for numbers in (inputs.first, inputs.positions, inputs.write_rows):
            numbers.zero_()
        inputs.num_keys.fill_(1)
        inputs.table_rows.fill_(len(self.tables.table) - 1)  # of slot 0 alone, or of a text long over: what is read does not matter
        self._is_recorded(recordings, size, compute, taps)
        for layer in self._cache.layers:
            layer[0].zero_()  # it pads tables

    def forget(self, owner: str) -> None:
        """Drop the owner's recordings: they would keep its weights in memory."""
        self._recordings.pop(owner, None)

    def _is_recorded(self, recordings: dict[int, Recording], size: int, compute: Compute, taps: Tensor | None) -> bool:
        """Record this size; False if that fails, after which everything runs as it is."""
        try:
            recordings[size] = self._record(lambda: self._computed(size, compute, taps))
        except Exception as error:  # of torch, of the driver, of Triton's compiler: the step itself runs as it is, and fails if it must
            self._is_broken = True
            self._recordings.clear()
            logger.warning("CUDA graphs are not used: %s", (str(error) or repr(error)).splitlines()[0])
            return False
        self.num_recorded += 1
        return True

    def _computed(self, size: int, compute: Compute, taps: Tensor | None) -> Tensor:
        """A step with `size` sequences, wherever their ends are, of what the buffer holds. What a table holds past an end is never read."""
        inputs = self._inputs(size)
        table = torch.index_select(self.tables.table, 0, inputs.table_rows)
        most_keys = self.tables.width * self._cache.shape.block_size
        rows = RaggedRows(self._starts[: size + 1], inputs.num_keys, 1, most_keys, table=table)
        plan = StepPlan(self._cache, self._attention, inputs.write_rows, None, rows, taps=taps)
        return compute(inputs.first, inputs.positions, plan)

    def _inputs(self, size: int) -> _Inputs:
        longs = self.staging.target[: 24 * size].view(torch.int64).view(3, size)
        ints = self.staging.target[24 * size : ROW_BYTES * size].view(torch.int32).view(2, size)
        return _Inputs(*longs, *ints)

    def _fill(self, size: int, rows: Sequence[DecodeRow], ahead: TokensAhead | None) -> None:
        """Send the step's numbers, and what is new of its tables: one copy, unless thousands of blocks are new."""
        delta, block_size = self.tables.update(rows), self._cache.shape.block_size
        at, slots = np.array(delta.at, dtype=np.int64), np.array(delta.slots, dtype=np.int32)
        while len(at) > MOST_CHANGES:
            self._change_tables([], at[:MOST_CHANGES], slots[:MOST_CHANGES])
            at, slots = at[MOST_CHANGES:], slots[MOST_CHANGES:]
        padded = [*range(len(rows)), *([0] * (size - len(rows)))]
        longs = np.array([(row.first, row.position, row.write_row(block_size)) for row in rows], dtype=np.int64).T[:, padded]
        ints = np.array([[row.position + 1 for row in rows], delta.rows], dtype=np.int32)[:, padded]
        order = np.array([] if ahead is None else [ahead.order[index] for index in padded], dtype=np.int64)
        pieces: list[np.ndarray] = [longs.ravel(), ints.ravel(), order]
        self._change_tables(pieces, at, slots)
        if ahead is not None:
            begin = ROW_BYTES * size
            picked = self.staging.target[begin : begin + 8 * size].view(torch.int64)
            torch.index_select(ahead.token_ids, 0, picked, out=self._inputs(size).first)

    def _change_tables(self, before: Sequence[np.ndarray], at: np.ndarray, slots: np.ndarray) -> None:
        """Send these behind `before`, and put them where they go."""
        self.staging.send([*before, at, slots])
        if len(at):
            begin = sum(piece.nbytes for piece in before)
            middle = begin + at.nbytes
            places = self.staging.target[begin:middle].view(torch.int64)
            self.tables.table.view(-1).index_copy_(0, places, self.staging.target[middle : middle + slots.nbytes].view(torch.int32))


def sizes_for(max_rows: int) -> tuple[int, ...]:
    """Sizes that steps of up to `max_rows` rows are padded to."""
    return tuple(size for index, size in enumerate(SIZES) if index == 0 or SIZES[index - 1] < max_rows)


def step_graphs(cache: KvCache, attention: AttentionBackend, max_tokens: int) -> StepGraphs | None:
    """For a cache on a GPU whose attention can be recorded; else None."""
    if cache.shape.device.type != "cuda" or not isinstance(attention, VarlenAttention) or not attention.is_paged:
        return None
    return StepGraphs(cache, attention, max_tokens, CudaRecorder(cache.shape.device))
