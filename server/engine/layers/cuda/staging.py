"""A decode step's numbers on their way to the device and back: one copy each, from and to pinned memory, without a wait in between.

Pinned memory that a copy still reads must not be written: buffers take turns, and one is used again only after its copy has ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUM_BUFFERS = 4  # copies under way at a time, before the host waits for the oldest


class Staging:
    """Bytes for one place on the device."""

    def __init__(self, num_bytes: int, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.target = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self.num_copies = 0
        self.num_bytes = 0  # sent so far
        is_cuda = device.type == "cuda"
        self._buffers = [_Buffer(num_bytes, cuda if is_cuda else None) for _ in range(NUM_BUFFERS if is_cuda else 1)]
        self._turns = itertools.cycle(self._buffers)

    def send(self, pieces: Sequence[np.ndarray]) -> None:
        """Copy these, one behind the other, to the start of `target`."""
        data = np.concatenate([piece.view(np.uint8) for piece in pieces])
        buffer = next(self._turns)
        buffer.copy(data, self.target)
        self.num_copies += 1
        self.num_bytes += len(data)


class _Buffer:
    def __init__(self, num_bytes: int, cuda: Any | None) -> None:
        self._host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=cuda is not None)
        self._numbers = self._host.numpy()
        self._copied = cuda.Event() if cuda is not None else None

    def copy(self, data: np.ndarray, target: Tensor) -> None:
        if self._copied is not None:
            self._copied.synchronize()  # of an event that was never recorded it returns at once
        self._numbers[: len(data)] = data
        target[: len(data)].copy_(self._host[: len(data)], non_blocking=True)
        if self._copied is not None:
            self._copied.record()


class ReadBack:
    """Numbers on their way from the device. What is launched after it is not waited for."""

    def __init__(self, numbers: Tensor, cuda: Any = torch.cuda) -> None:
        self._copied = None
        self._numbers = numbers
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = cuda.Event()
            self._copied.record()

    def read(self) -> np.ndarray:
        """The one wait of a step."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._numbers.numpy(force=True)
