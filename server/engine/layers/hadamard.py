"""Before a row is quantised to int8, each block of it is multiplied by a Hadamard matrix, which distributes large numbers over the block.

A row has one scale, and a number far larger than the others leaves them few levels. The matrix is orthogonal, and the weights' rows are
multiplied by it, too, so that products do not change: (x H) (W H)' = x W'. The idea is QuaRot's (arXiv 2404.00456); in blocks
it costs little. fp8 gains nothing by it: the steps between its numbers grow with them.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 64  # numbers; what a row has beyond its last whole block stays as it is


def spread(rows: Tensor) -> Tensor:
    """(rows, width), its dtype kept. The compiled layers have their own (compiled/rows.py)."""
    num_blocks = rows.shape[1] // BLOCK
    whole = num_blocks * BLOCK
    blocks = rows[:, :whole].reshape(len(rows), num_blocks, BLOCK) @ matrix(rows.device, rows.dtype)
    return torch.cat([blocks.flatten(1), rows[:, whole:]], dim=1) if whole < rows.shape[1] else blocks.flatten(1)


@cache
def matrix(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(BLOCK, BLOCK), symmetric and its own inverse: Sylvester's."""
    numbers = torch.ones(1, 1)
    while len(numbers) < BLOCK:
        numbers = torch.cat([torch.cat([numbers, numbers], dim=1), torch.cat([numbers, -numbers], dim=1)])
    numbers /= BLOCK**0.5
    return numbers.to(device=device, dtype=dtype)
