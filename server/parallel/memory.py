"""What a rank holds."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def held_bytes(device: str) -> int:
    """Of this process, or on a GPU what torch has taken there."""
    if device.startswith("cuda"):
        return int(torch.cuda.memory_reserved(device))
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
