"""The ranks' sums, by torch.distributed: NCCL between GPUs, gloo between processes on CPUs. On loopback: a server is one machine's."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

ON_LOOPBACK = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # which interface they listen on


class Group:
    """All ranks of one server. What it does, all of them do, in the same order: on the thread that runs passes alone."""

    def __init__(self, size: int) -> None:
        self.size = size

    def join(self, meeting: Path, rank: int, device: torch.device, timeout_s: float) -> None:
        """Meet the others by a file that nobody else may read. A sum that takes longer than `timeout_s` raises, or ends the process."""
        for name in ON_LOOPBACK:
            os.environ.setdefault(name, "lo")
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=FileStore(str(meeting), self.size),
            rank=rank,
            world_size=self.size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
        met = self.sum(torch.ones(1, device=device))  # connections are made now, and not in the first request
        assert int(met) == self.size

    def sum(self, x: Tensor) -> Tensor:
        """As layers.Sums."""
        dist.all_reduce(x)
        return x

    def from_first(self, x: Tensor) -> Tensor:
        """Rank 0's x, on every rank; x is overwritten on the others."""
        dist.broadcast(x, 0)
        return x


def leave() -> None:
    """Give back connections and threads."""
    if dist.is_initialized():
        dist.destroy_process_group()
