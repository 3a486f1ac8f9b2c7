"""Threads that use a GPU: each is told which one, and a worker's copies and launches go to a stream of their own beside the engine's.

CUDA has one present device a thread, the first one unless said otherwise: Triton would launch there, whatever device its tensors are on.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch


def on_device(device: torch.device, cuda: Any = torch.cuda) -> contextlib.AbstractContextManager[None]:
    """Within, the calling thread launches there."""
    context: contextlib.AbstractContextManager[None] = cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    return context


def use_device(device: torch.device, cuda: Any = torch.cuda) -> None:
    """For the calling thread, from now on. A GPU without a number is the first one."""
    if device.type == "cuda":
        cuda.set_device(device.index or 0)


def device_error(device: torch.device, cuda: Any = torch.cuda) -> str:
    """Why a GPU does nothing more for this process, as after an access to a wrong address; empty if it works. Waits for it."""
    if device.type == "cuda":
        try:
            cuda.synchronize(device)
        except RuntimeError as error:
            return (str(error) or repr(error)).splitlines()[0]
    return ""


def is_recording() -> bool:
    """Whether what the calling thread launches goes into a CUDA graph (graphs.py), or a recording that is invalid by now."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class SideStream:
    """What workers copy and launch while they load a head. On the engine's stream its steps would wait behind it."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._stream: Any = None  # made when first needed

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Everything launched within has ended when the block ends, so that any stream may read it."""
        if self._device.type != "cuda":
            yield
            return
        self._stream = self._stream or self._cuda.Stream(self._device)
        with self._cuda.device(self._device), self._cuda.stream(self._stream):
            try:
                yield
            finally:
                self._stream.synchronize()

    def outlive(self, weights: object) -> None:
        """Before these weights' memory is given back, wait for what the engine has launched on them.

        torch gives it back to the stream that it was taken on: the next upload could write there while a step still reads.
        """
        if self._device.type == "cuda":
            weakref.finalize(weights, self._cuda.default_stream(self._device).synchronize).atexit = False
