"""Tries kernels that attend in one call a layer on a small cache, and chooses the first that agrees with torch's own calls.

An untested driver, build of torch or package of FlashAttention could give plausible wrong numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from polyhead.server.engine.blocks.cache import CacheShape, KvCache
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention, candidates
from polyhead.server.engine.layers.plan import AttentionBackend, Segment, StepPlan
from polyhead.server.engine.layers.torch.attention import TorchAttention

TOLERANCE = 0.02  # of the norm; roundings of bfloat16 alone make 0.004
HEADS_PER_KEY_HEAD = 2
WINDOW = 20

logger = logging.getLogger(__name__)


def working_varlen(shape: CacheShape, kernels: Iterable[VarlenAttention] | None = None) -> VarlenAttention | None:
    """The first kernel that agrees with torch/attention.py; None if none does, or none is known for this device."""
    for kernel in candidates(shape.device, shape.dtype, shape.head_dim) if kernels is None else kernels:
        kind = "paged" if kernel.is_paged else "gathered"
        try:
            error = _error(shape, kernel)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as problem:
            logger.warning("attention over %s blocks is not used: %s", kind, str(problem).splitlines()[0])
            continue
        if error < TOLERANCE:
            return kernel
        logger.warning("attention over %s blocks is not used: off by %.3g of its norm", kind, error)
    return None


@torch.inference_mode()
def _error(shape: CacheShape, kernel: VarlenAttention) -> float:
    """The largest difference on decoding, prefilling and continued sequences, with a window and without. NaN counts as infinite."""
    size = shape.block_size
    ends = [(0, size + 3), (3 * size + 1, 3 * size + 2), (2 * size, 2 * size + 7), (0, 1)]
    first = [1 + sum(-(-end // size) for _, end in ends[:index]) for index in range(len(ends))]
    segments = [
        Segment([slot + each for each in range(-(-end // size))], start, end) for slot, (start, end) in zip(first, ends, strict=True)
    ]
    cache = KvCache(shape, 1, 1 + sum(len(segment.slots) for segment in segments))
    generator = torch.Generator().manual_seed(0)
    cache.layers[0].copy_(torch.randn(cache.layers[0].shape, generator=generator))
    num_rows = sum(end - start for start, end in ends)
    num_heads = HEADS_PER_KEY_HEAD * shape.num_kv_heads
    queries = torch.randn(num_rows, num_heads, shape.head_dim, generator=generator).to(shape.device, shape.dtype)
    cache.layers[0][0].zero_()
    ways: tuple[AttentionBackend, ...] = (kernel, TorchAttention())
    plans = [StepPlan.build(cache, way, segments, [segment.end for segment in segments]) for way in ways]
    scale = shape.head_dim**-0.5
    pairs = ([plan.attention.attend(plan, 0, queries, scale, window) for plan in plans] for window in (0, WINDOW))
    return max(_distance(found, wanted) for found, wanted in pairs)


def _distance(found: Tensor, wanted: Tensor) -> float:
    distance = float((found - wanted).float().norm() / wanted.float().norm())
    return float("inf") if distance != distance else distance
