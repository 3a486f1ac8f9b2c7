"""A step's numbers are copied to the device: on a GPU all of them in one copy, without a wait.

A tensor made there from a list costs a copy of its own, and the host waits until the GPU has done everything queued before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def upload(lists: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Each list as int64."""
    if device.type == "cpu":
        return [torch.tensor(numbers, dtype=torch.long) for numbers in lists]
    joined = torch.tensor([number for numbers in lists for number in numbers], dtype=torch.long).pin_memory()
    return list(torch.split(joined.to(device, non_blocking=True), [len(numbers) for numbers in lists]))


def upload_numbers(rows: np.ndarray, device: torch.device) -> Tensor:
    """(rows, numbers) float64."""
    numbers = torch.from_numpy(np.ascontiguousarray(rows))
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)
