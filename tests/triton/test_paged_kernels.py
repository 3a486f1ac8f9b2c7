"""Our own attention kernels, run by Triton's interpreter, against plain torch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.server.engine.blocks.cache import CacheShape
from polyhead.server.engine.layers.cuda import paged
from polyhead.server.engine.layers.cuda.paged import paged_attention
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention
from polyhead.server.engine.layers.cuda.varlen_probe import QueryHeads, working_varlen
from tests.server.engine.layers.varlen_reference import varlen_reference

NAN = float("nan")


@dataclass(frozen=True)
class Sizes:
    head_dim: int
    num_heads: int
    num_kv_heads: int
    block: int
    dtype: torch.dtype = torch.float32


SIZES = [
    Sizes(16, 4, 2, 16),
    Sizes(64, 6, 2, 4),  # a group of three
    Sizes(80, 4, 4, 16),  # an odd head, a group of one
    Sizes(128, 7, 1, 16),
    Sizes(256, 2, 1, 16),
    Sizes(36, 34, 2, 16),  # a group beyond the smallest tile
    Sizes(64, 4, 2, 16, torch.float16),  # the interpreter computes wrong products of bfloat16: that is compiled alone (test_compile.py)
]


def step(sizes: Sizes, runs: list[tuple[int, int]], seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a step of (queries, keys) a sequence. What no sequence may see is NaN; blocks lie in any order."""
    order, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    counts = [-(-end // sizes.block) for _, end in runs]
    slots = list(range(1, 1 + sum(counts)))
    order.shuffle(slots)
    table = torch.zeros(len(runs), max(counts), dtype=torch.int32)
    cache = torch.full((1 + sum(counts), sizes.block, 2, sizes.num_kv_heads, sizes.head_dim), NAN, dtype=sizes.dtype)
    for index, (count, (_, end)) in enumerate(zip(counts, runs, strict=True)):
        table[index, :count] = torch.tensor([slots.pop() for _ in range(count)])
        for at in range(end):
            kv = torch.randn(2, sizes.num_kv_heads, sizes.head_dim, generator=generator)
            cache[table[index, at // sizes.block], at % sizes.block] = kv.to(sizes.dtype)
    num_tokens, width = sum(count for count, _ in runs), sizes.num_heads + 2 * sizes.num_kv_heads
    queries = torch.randn(num_tokens, width, sizes.head_dim, generator=generator).to(sizes.dtype)[:, : sizes.num_heads]  # not contiguous
    starts = torch.tensor([0, *torch.tensor([count for count, _ in runs]).cumsum(0).tolist()], dtype=torch.int32)
    ends = torch.tensor([end for _, end in runs], dtype=torch.int32)
    inputs = (queries, *cache.unbind(-3), starts, None, max(count for count, _ in runs), max(end for _, end in runs))
    return inputs, {"scale": sizes.head_dim**-0.5, "enable_gqa": True, "seqused_k": ends, "block_table": table}


def assert_close(found: Tensor, wanted: Tensor) -> None:
    tolerance = 2e-3 if found.dtype == torch.float16 else 1e-5
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


MIXED = [(1, 40), (70, 90), (3, 3), (1, 1), (20, 61)]
DECODE = [(1, 1), (1, 16), (1, 17), (1, 130)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("window", [(-1, 0), (0, 0), (19, 0)], ids=["all", "itself", "window"])
@pytest.mark.parametrize("runs", [MIXED, DECODE], ids=["mixed", "decode"])
def test_a_step_of_any_kind(sizes: Sizes, window: tuple[int, int], runs: list[tuple[int, int]]) -> None:
    inputs, options = step(sizes, runs)
    assert_close(paged_attention(*inputs, window_size=window, **options), varlen_reference(*inputs, window_size=window, **options))


@pytest.mark.parametrize("window", [(-1, 0), (300, 0)], ids=["all", "window"])
@pytest.mark.parametrize("num_processors", [4, 1000])
def test_split_keys_add_up(num_processors: int, window: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of many splits beside one that is shorter than a split."""
    monkeypatch.setattr(paged, "num_processors", lambda device: num_processors)
    inputs, options = step(Sizes(32, 4, 2, 16), [(1, 1100), (1, 5)])
    assert paged.Launch.of(2, 1, 1100, 2, 2, 32, num_processors).num_splits > 1
    assert_close(paged_attention(*inputs, window_size=window, **options), varlen_reference(*inputs, window_size=window, **options))


def test_a_softcap() -> None:
    inputs, options = step(Sizes(16, 4, 2, 16), MIXED)
    options |= {"scale": 3.0, "softcap": 2.0, "window_size": (-1, 0)}  # scores far beyond the cap
    assert_close(paged_attention(*inputs, **options), varlen_reference(*inputs, **options))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_probe_takes_it(softcap: float | None) -> None:
    kernel = VarlenAttention(paged_attention, is_paged=True, name="triton paged", has_softcap=True)
    shape = CacheShape(2, 16, 16, torch.float32, torch.device("cpu"))
    found = working_varlen(shape, QueryHeads(3, softcap), [kernel])
    assert found is not None
    assert (found.call, found.fallback is not None) == (paged_attention, True)
