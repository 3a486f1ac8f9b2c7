"""Tries the fused kernels on small rows and compares them with torch's calls, before they serve."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from polyhead.server.engine.layers.cuda import plain_rows
from polyhead.server.engine.layers.cuda.fused import Fused
from polyhead.server.engine.layers.cuda.plain_rows import FP8, INT8, EightBits, HeadNorms, Scales, Turning

TOLERANCE = 0.02  # of the norm, between a kernel and torch's calls; roundings of bfloat16 alone make 0.004

Computes = Callable[[Any], Tensor]  # by `Fused`, or by plain_rows, which have the same functions
logger = logging.getLogger(__name__)


def fused_for(device: torch.device, dtype: torch.dtype) -> Fused | None:
    """The kernels that work on this device, for rows of this dtype; None where there are none."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or not find_spec("triton"):
        return None
    return _tried(device, dtype)


@cache
def _tried(device: torch.device, dtype: torch.dtype) -> Fused:
    fused = Fused()
    check(fused, device, dtype)
    logger.info("fused GPU kernels on %s: %s", device, "all" if not fused.failed else f"all but {', '.join(sorted(fused.failed))}")
    return fused


@torch.inference_mode()
def check(fused: Fused, device: torch.device, dtype: torch.dtype) -> None:
    """Put aside what fails on small rows, or is off by more than TOLERANCE."""
    for name, computes in _trials(device, dtype):
        found, wanted = computes(fused), computes(plain_rows)
        distance = float((found.float() - wanted.float()).norm() / wanted.float().norm())
        if name not in fused.failed and not distance < TOLERANCE:
            fused.failed.add(name)
            logger.warning("the GPU kernel %s is not used: off by %.3g of its norm", name, distance)


def _trials(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Computes]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    rows, other, weight = random(5, 192), random(5, 192), random(192)
    yield "silu x up", lambda ways: ways.silu_up(rows)
    yield "add and norm", lambda ways: ways.add_norm(rows.clone(), None, weight, 1e-5)
    yield "add and norm", lambda ways: ways.add_norm(rows.clone(), other, weight, 1e-5)
    for form in (INT8, FP8):

        def whole(ways: Any, form: EightBits = form) -> Tensor:
            """As numbers of their own size."""
            numbers, its_scales = ways.quantized(rows, form, 32, 208)
            made: Tensor = numbers[: len(rows)].float() * its_scales[: len(rows), None]
            return made

        yield f"quantise {form.name}", whole
    sums, scales = (random(5, 192) * 100).to(torch.int32), Scales(random(5).float(), random(192).float(), weight)
    yield "descale", lambda ways: ways.descaled(sums, scales, dtype, other)
    yield "descale", lambda ways: ways.descaled(sums, scales, dtype, is_gated=True)
    qkv, angles = random(3, 6 * 16), random(3, 8).float()
    rotations, write_rows = torch.polar(torch.ones_like(angles), angles), torch.tensor([1, 5, 2], device=device)
    for norms in (None, HeadNorms((random(16), 1e-5), (random(16), 1e-5))):

        def turned(ways: Any, norms: HeadNorms | None = norms) -> Tensor:
            """Queries, and the cache behind them."""
            given, cache_rows = qkv.clone(), qkv.new_zeros(6, 2, 1, 16)
            ways.turn(given, Turning(rotations, write_rows, cache_rows, 4, norms))
            return torch.cat([given[:, : 4 * 16].flatten(), cache_rows.flatten()])

        yield "rope and cache", turned
