"""A layer's small work between its products, in torch's calls: what fused.py falls back to and is compared with. Any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, rms_norm, silu

from polyhead.server.engine.layers.hadamard import spread

SMALLEST = 1e-30  # a row of zeros is divided by this


@dataclass(frozen=True, slots=True)
class EightBits:
    """Numbers of 8 bits."""

    name: str
    dtype: torch.dtype  # int8, or a float of 8 bits
    largest: float  # what the largest number of a row becomes
    is_spread: bool  # ../hadamard.py


INT8 = EightBits("int8", torch.int8, 127, is_spread=True)
FP8 = EightBits("fp8", torch.float8_e4m3fn, 448, is_spread=False)


@dataclass(frozen=True, slots=True)
class Scales:
    """What products of 8-bit numbers are multiplied by, and a bias after that."""

    rows: Tensor  # (T,) or more, float32
    columns: Tensor  # (out,), float32
    bias: Tensor | None = None  # (out,)


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Norms of queries and keys, of each head alone."""

    query: tuple[Tensor, float]  # weight (head_dim,), epsilon
    key: tuple[Tensor, float]


@dataclass(frozen=True, slots=True)
class Turning:
    """By what a layer's queries and keys are turned, and where keys and values go."""

    rotations: Tensor  # (T, head_dim / 2), complex64: of each token's position
    write_rows: Tensor  # (T,), int64
    cache: Tensor  # (rows, 2, key heads, head_dim)
    num_heads: int
    norms: HeadNorms | None


def silu_up(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=1)
    return silu(gate).mul_(up)


def add_norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    if added is not None:
        x.add_(added)
    return rms_norm(x, weight.shape, weight, eps)


def quantized(rows: Tensor, form: EightBits, num_rows: int, width: int) -> tuple[Tensor, Tensor]:
    rows, given = spread(rows) if form.is_spread else rows, rows
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_min_(SMALLEST).div_(form.largest)
    scaled = rows / scale
    if not form.dtype.is_floating_point:
        scaled.round_()
    numbers = scaled.nan_to_num_(0.0, form.largest, -form.largest).to(form.dtype)
    more_rows, more_columns = num_rows - given.shape[0], width - given.shape[1]
    numbers = pad(numbers, (0, more_columns, 0, more_rows)) if more_rows or more_columns else numbers
    return numbers, scale[:, 0]


def descaled(sums: Tensor, scales: Scales, out_dtype: torch.dtype, added: Tensor | None = None, *, is_gated: bool = False) -> Tensor:
    product = sums[:, : len(scales.columns)].float().mul_(scales.rows[: len(sums), None]).mul_(scales.columns)
    product = product if scales.bias is None else product.add_(scales.bias)
    product = product.to(out_dtype)
    if is_gated:
        product = silu_up(product)
    return product if added is None else product.add_(added)


def turn(qkv: Tensor, turning: Turning) -> None:
    """Queries and keys are rotated where they stand, in float32 whatever the dtype; keys and values are written to the cache."""
    _, _, num_kv_heads, head_dim = turning.cache.shape
    heads = qkv.view(len(qkv), turning.num_heads + 2 * num_kv_heads, head_dim)
    queries, turned = heads[:, : turning.num_heads], heads[:, : turning.num_heads + num_kv_heads]
    if turning.norms is not None:
        for part, (weight, eps) in ((queries, turning.norms.query), (turned[:, turning.num_heads :], turning.norms.key)):
            part.copy_(rms_norm(part, weight.shape, weight, eps))
    pairs = torch.view_as_complex(turned.float().view(len(qkv), -1, head_dim // 2, 2)) * turning.rotations[:, None]
    turned.copy_(torch.view_as_real(pairs).flatten(2))
    turning.cache.index_copy_(0, turning.write_rows, heads[:, turning.num_heads :].view(len(qkv), 2, num_kv_heads, head_dim))
