"""CUDA graphs of decode steps: what a trunk or a head launches for one token of each sequence, recorded once and launched as one.

A graph is bound to addresses: a step's numbers are copied to the buffers it was recorded with, and its rows are padded to a size that was
recorded. A padding row repeats the step's first: it writes the same numbers to the same place, and its output is not read.

Recorded are steps of one new token a sequence and every row's output, on attention that follows a table of blocks (our own, or
FlashAttention 3): gathered blocks change their number with every token. Prefills, mixed steps, adapters, plain modules and rows beyond the
largest size run as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.layers.cuda.varlen import RaggedRows, VarlenAttention
from polyhead.server.engine.layers.plan import AttentionBackend, StepPlan

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # rows

logger = logging.getLogger(__name__)

Compute = Callable[[Tensor, Tensor, StepPlan], Tensor]  # ids or rows of states, positions, the step's plan -> output rows


class Recording(Protocol):
    """Launches once more what was recorded, on what its inputs hold now."""

    output: Tensor  # overwritten by this recording's next run, and by any other's

    def replay(self) -> None: ...


Record = Callable[[Callable[[], Tensor]], Recording]


class StepGraphs:
    """Recordings of the layers over one cache, by owner (the trunk, or a head's weights) and size. Made when first needed."""

    def __init__(self, cache: KvCache, attention: VarlenAttention, max_tokens: int, record: Record) -> None:
        assert attention.is_paged, "attention in a graph follows a table of blocks"
        device, largest = cache.shape.device, SIZES[-1]
        self.num_recorded = 0
        self.num_replayed = 0
        self._cache = cache
        self._attention = attention
        self._record = record
        self._width = -(-max_tokens // cache.shape.block_size)
        self._numbers = torch.zeros(3, largest, dtype=torch.long, device=device)  # first input, positions, rows written
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._num_keys = torch.ones(largest, dtype=torch.int32, device=device)
        self._table = torch.zeros(largest, self._width, dtype=torch.int32, device=device)
        self._recordings: dict[str, dict[int, Recording]] = {}
        self._is_broken = False

    def can_run(self, plan: StepPlan) -> bool:
        """Whether a step of this plan can be recorded."""
        rows: RaggedRows = plan.prepared
        if self._is_broken or rows.table is None or plan.asked is not None or plan.new_rows is not None:
            return False
        is_decode = rows.most_queries == 1 and 0 < len(plan.write_rows) <= SIZES[-1]
        return is_decode and rows.table.shape[1] <= self._width

    def run(self, owner: str, compute: Compute, first: Tensor, positions: Tensor, plan: StepPlan) -> Tensor:
        """What `compute(first, positions, plan)` returns and writes. `compute` may differ between calls only by its owner."""
        num_rows = len(first)
        size = next(size for size in SIZES if size >= num_rows)
        recordings = self._recordings.setdefault(owner, {})
        self._fill(size, first, positions, plan)  # before recording, which computes this step
        if size not in recordings and not self._is_recorded(recordings, size, compute, plan):
            return compute(first, positions, plan)
        recordings[size].replay()
        self.num_replayed += 1
        return recordings[size].output[:num_rows].clone()

    def forget(self, owner: str) -> None:
        """Drop the owner's recordings: they would keep its weights in memory."""
        self._recordings.pop(owner, None)

    def _is_recorded(self, recordings: dict[int, Recording], size: int, compute: Compute, plan: StepPlan) -> bool:
        """Record this size; False if that fails, after which everything runs as it is."""
        still = StepPlan(self._cache, self._attention, self._numbers[2, :size], None, self._rows(size), taps=plan.taps)
        try:
            recordings[size] = self._record(lambda: compute(self._numbers[0, :size], self._numbers[1, :size], still))
        except RuntimeError as error:
            self._is_broken = True
            self._recordings.clear()
            logger.warning("CUDA graphs are not used: %s", str(error).splitlines()[0])
            return False
        self.num_recorded += 1
        return True

    def _rows(self, size: int) -> RaggedRows:
        """Of a step with `size` sequences, wherever their ends are."""
        most_keys = self._width * self._cache.shape.block_size
        return RaggedRows(self._starts[: size + 1], self._num_keys[:size], 1, most_keys, table=self._table[:size])

    def _fill(self, size: int, first: Tensor, positions: Tensor, plan: StepPlan) -> None:
        """The step's numbers where recordings read them. What a table holds past a sequence's end is never read."""
        rows: RaggedRows = plan.prepared
        assert rows.table is not None
        width = rows.table.shape[1]
        given = torch.stack((first, positions, plan.write_rows))
        for target, source in (
            (self._numbers[:, :size], given),
            (self._num_keys[None, :size], rows.num_keys[None]),
            (self._table.T[:width, :size], rows.table.T),
        ):
            num_rows = source.shape[1]
            target[:, :num_rows] = source
            target[:, num_rows:] = source[:, :1]


class CudaRecorder:
    """Records with CUDA graphs. They share one memory pool, since they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> Recording:
        return _CudaRecording(compute, self._device, self._pool)


class _CudaRecording:
    def __init__(self, compute: Callable[[], Tensor], device: torch.device, pool: Any) -> None:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                compute()  # what a kernel library sets up on its first call cannot be recorded
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads load heads meanwhile, and must be able to allocate.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.output = compute()

    def replay(self) -> None:
        self._graph.replay()


def step_graphs(cache: KvCache, attention: AttentionBackend, max_tokens: int) -> StepGraphs | None:
    """For a cache on a GPU whose attention can be recorded; else None."""
    if cache.shape.device.type != "cuda" or not isinstance(attention, VarlenAttention) or not attention.is_paged:
        return None
    return StepGraphs(cache, attention, max_tokens, CudaRecorder(cache.shape.device))
