"""Cache memory: promised when a cache is made, taken when it is written."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from polyhead.server.engine.cache import CacheShape, KvCache

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_a_cache_takes_memory_only_where_it_is_written() -> None:
    """calloc clears what malloc has kept and so touches it: a server once held 200 MiB of empty cache, on one start in six."""
    kept = [torch.ones(20 << 18) for _ in range(12)]  # 240 MiB that malloc may hand out again
    del kept
    before = resident_bytes()
    cache = KvCache(CacheShape(4, 64, 16, torch.float32, torch.device("cpu")), num_layers=8, num_slots=1200)
    layer_bytes = cache.layers[0].numel() * 4
    assert layer_bytes > 36 << 20
    assert resident_bytes() - before < layer_bytes // 8
    assert not cache.layers[3][700].any()
    cache.layers[0].fill_(1.0)
    assert resident_bytes() - before >= layer_bytes * 0.95
