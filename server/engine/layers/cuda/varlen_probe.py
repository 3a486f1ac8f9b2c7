"""Tries kernels that attend in one call a layer on a small cache, and chooses the first that agrees with torch's own calls.

An untested driver, build of torch or package of FlashAttention could give plausible wrong numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyhead.server.engine.blocks.cache import CacheShape, KvCache
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention, candidates
from polyhead.server.engine.layers.layer_calls import LayerCall
from polyhead.server.engine.layers.plan import AttentionBackend, Segment, StepPlan
from polyhead.server.engine.layers.torch.attention import TorchAttention

TOLERANCE = 0.02  # of the norm; roundings of bfloat16 alone make 0.004
WINDOW = 20
LONG = 1100  # tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueryHeads:
    """What a model's queries ask of attention, beside the cache's sizes."""

    group: int = 2  # query heads of a key head: kernels are compiled for it
    softcap: float | None = None

    @classmethod
    def of(cls, calls: Sequence[LayerCall]) -> QueryHeads:
        """Of a model's layers; a soft-cap if any has one."""
        return cls(calls[0].group, next((call.softcap for call in calls if call.softcap is not None), None))


def working_varlen(shape: CacheShape, queries: QueryHeads, kernels: Iterable[VarlenAttention] | None = None) -> VarlenAttention | None:
    """The first kernel that agrees with torch/attention.py; None if none does, or none is known for this device.

    With a soft-cap only kernels that know one are tried. An error of any kind passes a kernel by: what Triton's compiler or a driver may
    raise is not one class, and the server has another way to attend.
    """
    for kernel in candidates(shape.device, shape.dtype, shape.head_dim) if kernels is None else kernels:
        if queries.softcap is not None and not kernel.has_softcap:
            continue
        try:
            error = max(_error(shape, queries, kernel, ends) for ends in _steps(shape.block_size))
        except Exception as problem:
            logger.warning("attention by %s is not used: %s", kernel.name, (str(problem) or repr(problem)).splitlines()[0])
            continue
        if error < TOLERANCE:
            logger.info("attention on %s: %s", shape.device, kernel.name)
            return replace(kernel, fallback=TorchAttention())
        logger.warning("attention by %s is not used: off by %.3g of its norm", kernel.name, error)
    return None


def _steps(size: int) -> list[list[tuple[int, int]]]:
    """(first new position, end) of each sequence of a step: mixed; decoding; decoding of a long text, whose keys a kernel may split."""
    mixed = [(0, size + 3), (3 * size + 1, 3 * size + 2), (2 * size, 2 * size + 7), (0, 1)]
    return [mixed, [(end - 1, end) for end in (1, size, 2 * size + 1)], [(LONG - 1, LONG)]]


@torch.inference_mode()
def _error(shape: CacheShape, asked: QueryHeads, kernel: VarlenAttention, ends: list[tuple[int, int]]) -> float:
    """The largest difference of a step, with a window and without. NaN counts as infinite."""
    size = shape.block_size
    first = [1 + sum(-(-end // size) for _, end in ends[:index]) for index in range(len(ends))]
    segments = [
        Segment([slot + each for each in range(-(-end // size))], start, end) for slot, (start, end) in zip(first, ends, strict=True)
    ]
    cache = KvCache(shape, 1, 1 + sum(len(segment.slots) for segment in segments))
    generator = torch.Generator().manual_seed(0)
    cache.layers[0].copy_(torch.randn(cache.layers[0].shape, generator=generator))
    num_rows = sum(end - start for start, end in ends)
    num_heads = asked.group * shape.num_kv_heads
    queries = torch.randn(num_rows, num_heads, shape.head_dim, generator=generator).to(shape.device, shape.dtype)
    cache.layers[0][0].zero_()
    ways: tuple[AttentionBackend, ...] = (kernel, TorchAttention())
    plans = [StepPlan.build(cache, way, segments, [segment.end for segment in segments]) for way in ways]
    scale = shape.head_dim**-0.5
    pairs = ([plan.attention.attend(plan, 0, queries, scale, window, asked.softcap) for plan in plans] for window in (0, WINDOW))
    return max(_distance(found, wanted) for found, wanted in pairs)


def _distance(found: Tensor, wanted: Tensor) -> float:
    distance = float((found - wanted).float().norm() / wanted.float().norm())
    return float("inf") if distance != distance else distance
