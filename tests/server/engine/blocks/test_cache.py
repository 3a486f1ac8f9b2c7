"""Cache memory: promised when a cache is made, taken when it is written or ahead of that."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polyhead.server.engine.blocks.cache import CacheShape, KvCache, TrunkCache
from polyhead.server.host.commit import PIECE_BYTES, commit

SHAPE = CacheShape(4, 64, 16, torch.float32, torch.device("cpu"))
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_a_cache_takes_memory_only_where_it_is_written() -> None:
    """calloc clears what malloc has kept and so touches it: a server once held 200 MiB of empty cache, on one start in six."""
    kept = [torch.ones(20 << 18) for _ in range(12)]  # 240 MiB that malloc may hand out again
    del kept
    before = resident_bytes()
    cache = KvCache(SHAPE, num_layers=8, num_slots=1200)
    layer_bytes = cache.layers[0].numel() * 4
    assert layer_bytes > 36 << 20
    assert resident_bytes() - before < layer_bytes // 8
    assert not cache.layers[3][700].any()
    cache.layers[0].fill_(1.0)
    assert resident_bytes() - before >= layer_bytes * 0.95


def test_memory_is_taken_ahead_and_nothing_in_it_changes() -> None:
    cache = TrunkCache(SHAPE, num_layers=3, d_model=64, num_slots=700, has_taps=True)
    cache.kv.layers[1][5:600:7] = 2.5
    cache.states[-1] = 3.5
    wanted = [tensor.clone() for tensor in cache.tensors]
    before = resident_bytes()
    assert commit(cache.tensors, lambda: True)
    assert resident_bytes() - before >= 0.8 * sum(tensor.nbytes for tensor in cache.tensors)
    assert all(torch.equal(tensor, want) for tensor, want in zip(cache.tensors, wanted, strict=True))


def test_the_first_slots_of_all_layers_come_first() -> None:
    layers = KvCache(SHAPE, num_layers=4, num_slots=700).layers
    pieces = iter(range(len(layers)))
    before = resident_bytes()
    assert not commit(layers, lambda: next(pieces, None) is not None)
    taken = resident_bytes() - before
    assert taken >= len(layers) * PIECE_BYTES * 0.8
    for layer in layers:
        layer[: PIECE_BYTES // 2 // layer[0].nbytes] = 1.0
    assert resident_bytes() - before <= taken + PAGE


def test_a_kernel_that_cannot_leaves_it_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.server.host.commit._madvise", lambda start, size, advice: -1)
    assert not commit([torch.zeros(10)], lambda: True)
    assert commit([], lambda: True)


def test_a_taken_slot_costs_a_gpu_one_launch() -> None:
    """It was one a layer. Attention that reads no key which was not written needs none."""

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counts.update([func._schema.name])
            return func(*args, **(kwargs or {}))

    counts: Counter[str] = Counter()
    shape = replace(SHAPE, device=torch.device("meta"))
    caches = [KvCache(shape, num_layers=8, num_slots=3, is_cleared=is_cleared) for is_cleared in (True, False)]
    with Counted():
        for cache in caches:
            cache.clear(1)
    del counts["aten::select"]  # a view
    assert counts == {"aten::_foreach_zero_": 1}
