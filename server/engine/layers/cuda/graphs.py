"""CUDA graphs of decode steps: what a trunk or a head launches for one token of each sequence, recorded once and launched as one.

A graph is bound to addresses: a step's numbers are copied to the buffers it was recorded with, and its rows are padded to a size that was
recorded. A padding row repeats the step's first: it writes the same numbers to the same place, and its output is not read.

Recorded are steps of one new token a sequence and every row's output, on attention that follows a table of blocks (our own, or
FlashAttention 3): gathered blocks change their number with every token. Prefills, mixed steps, adapters, plain modules and rows beyond the
largest size run as they are.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
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

    @property
    def output(self) -> Tensor:
        """Overwritten by this recording's next run, and by any other's."""
        ...

    def replay(self) -> None: ...


Record = Callable[[Callable[[], Tensor]], Recording]


class StepGraphs:
    """Recordings of the layers over one cache, by owner (the trunk, or a head's weights) and size. Made when first needed, or before."""

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
        if size not in recordings and not self._is_recorded(recordings, size, compute, plan.taps):
            return compute(first, positions, plan)
        recordings[size].replay()
        self.num_replayed += 1
        return recordings[size].output[:num_rows].clone()

    def warm(self, owner: str, compute: Compute, size: int, taps: Tensor | None = None) -> None:
        """Record a size ahead of the first step that needs it, as for `run`. Computes on rows of zeros that write to slot 0."""
        recordings = self._recordings.setdefault(owner, {})
        if self._is_broken or size in recordings:
            return
        self._numbers[:, :size].zero_()
        self._num_keys[:size].fill_(1)
        self._table[:size].zero_()
        self._is_recorded(recordings, size, compute, taps)
        for layer in self._cache.layers:
            layer[0].zero_()  # it pads tables

    def forget(self, owner: str) -> None:
        """Drop the owner's recordings: they would keep its weights in memory."""
        self._recordings.pop(owner, None)

    def _is_recorded(self, recordings: dict[int, Recording], size: int, compute: Compute, taps: Tensor | None) -> bool:
        """Record this size; False if that fails, after which everything runs as it is."""
        still = StepPlan(self._cache, self._attention, self._numbers[2, :size], None, self._rows(size), taps=taps)
        try:
            recordings[size] = self._record(lambda: compute(self._numbers[0, :size], self._numbers[1, :size], still))
        except Exception as error:  # of torch, of the driver, of Triton's compiler: the step itself runs as it is, and fails if it must
            self._is_broken = True
            self._recordings.clear()
            logger.warning("CUDA graphs are not used: %s", (str(error) or repr(error)).splitlines()[0])
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


def sizes_for(max_rows: int) -> tuple[int, ...]:
    """Sizes that steps of up to `max_rows` rows are padded to."""
    return tuple(size for index, size in enumerate(SIZES) if index == 0 or SIZES[index - 1] < max_rows)


class CudaRecorder:
    """Records with CUDA graphs. They share one memory pool, since they never run at the same time, and one stream: each stream that a
    product was recorded on keeps a workspace of cuBLAS.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._pool = cuda.graph_pool_handle()
        self._stream = cuda.Stream(device)

    def __call__(self, compute: Callable[[], Tensor]) -> Recording:
        """Raises what the recording raised, with the thread back on its stream, no recording open and nothing left to run."""
        with self._cuda.device(self._device):
            before = self._cuda.current_stream()
            self._stream.wait_stream(before)
            try:
                with self._cuda.stream(self._stream):
                    compute()  # what a kernel library sets up on its first call cannot be recorded
                    recording = self._recorded(compute)
                before.wait_stream(self._stream)
                return recording
            except BaseException:
                self._cuda.synchronize()
                raise

    def _recorded(self, compute: Callable[[], Tensor]) -> CudaRecording:
        graph = self._cuda.CUDAGraph()
        # Other threads load heads meanwhile, and must be able to allocate.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            output = compute()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # it says once more that the recording is invalid
                graph.capture_end()
            raise
        graph.capture_end()
        return CudaRecording(graph, output)


@dataclass(frozen=True, slots=True)
class CudaRecording:
    """A recorded graph."""

    graph: Any
    output: Tensor

    def replay(self) -> None:
        self.graph.replay()


def step_graphs(cache: KvCache, attention: AttentionBackend, max_tokens: int) -> StepGraphs | None:
    """For a cache on a GPU whose attention can be recorded; else None."""
    if cache.shape.device.type != "cuda" or not isinstance(attention, VarlenAttention) or not attention.is_paged:
        return None
    return StepGraphs(cache, attention, max_tokens, CudaRecorder(cache.shape.device))
