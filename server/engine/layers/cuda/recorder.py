"""Records what a step launches, by CUDA graphs, and leaves nothing open where that fails. Knows no step."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Recording(Protocol):
    """Launches once more what was recorded, on what its inputs hold now."""

    @property
    def output(self) -> Tensor:
        """Overwritten by this recording's next run, and by any other's."""
        ...

    def replay(self) -> None: ...


Record = Callable[[Callable[[], Tensor]], Recording]


def _end_pool(device: int, pool: Any) -> None:
    """RuntimeError if no recording takes from it."""
    torch._C._cuda_endAllocateToPool(device, pool)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python collects no cycles within: what it ends may wait for the device, which no thread may that records."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class CudaRecorder:
    """Records with CUDA graphs. They share one memory pool, since they never run at the same time, and one stream: each stream that a
    product was recorded on keeps a workspace of cuBLAS.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda, end_pool: Callable[[int, Any], None] = _end_pool) -> None:
        """`end_pool` (device, pool): what a recording takes of memory is no longer taken from the pool."""
        self._device = device
        self._cuda = cuda
        self._end_pool = end_pool
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
        with _no_collection():
            try:
                # Other threads load heads meanwhile, and must be able to allocate.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                output = compute()
                graph.capture_end()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # it is at its end already, or says once more that it is invalid
                    graph.capture_end()
                # Of an invalid recording torch's own end fails before its allocator learns of it, which as long as a recording is open
                # gives no cached memory back when memory runs out.
                with contextlib.suppress(RuntimeError):
                    self._end_pool(self._device.index or 0, self._pool)
                raise
        return CudaRecording(graph, output)


@dataclass(frozen=True, slots=True)
class CudaRecording:
    """A recorded graph."""

    graph: Any
    output: Tensor

    def replay(self) -> None:
        self.graph.replay()
