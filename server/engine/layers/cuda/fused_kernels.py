"""A layer's small work between its products, in Triton: each kernel does what torch's own calls need several launches for.

Compiled when first launched, by fused.py, which has the same in torch's calls. Rows do not depend on each other.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp(-tl.maximum(x, -80.0)))  # below it is 0 in any case, and e^80 is finite


@triton.jit
def _three_bits(x):
    """Rounded to what float8_e4m3fn holds, halves to even, so that converting it rounds no more: Triton's interpreter does that wrongly."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -1048576  # the sign is apart: what is rounded is the magnitude
    small = (x + 24576.0) - 24576.0  # below 2^-6 in steps of 2^-9
    return tl.where(tl.abs(x) < 0.015625, small, bits.to(tl.float32, bitcast=True))


@triton.jit
def silu_up_kernel(both, out, width, both_row, out_row, BLOCK: tl.constexpr):
    """silu(gate) * up of rows (gate, up) of 2 * width numbers."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = at < width
    gate = tl.load(both + row * both_row + at, mask=is_there, other=0.0).to(tl.float32)
    up = tl.load(both + row * both_row + width + at, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + row * out_row + at, (_silu(gate) * up).to(out.dtype.element_ty), mask=is_there)


@triton.jit
def add_norm_kernel(x, added, weight, out, width, eps, x_row, added_row, out_row, BLOCK: tl.constexpr, HAS_ADDED: tl.constexpr):
    """x += added, rounded to x's dtype; out = x / rms(x) * weight. A program a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    is_there = at < width
    numbers = tl.load(x + row * x_row + at, mask=is_there, other=0.0).to(tl.float32)
    if HAS_ADDED:
        numbers += tl.load(added + row * added_row + at, mask=is_there, other=0.0).to(tl.float32)
        kept = numbers.to(x.dtype.element_ty)
        tl.store(x + row * x_row + at, kept, mask=is_there)
        numbers = kept.to(tl.float32)
    mean = tl.sum(numbers * numbers, 0) / width
    scaled = numbers / tl.sqrt(mean + eps)
    scale = tl.load(weight + at, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + row * out_row + at, (scaled * scale).to(out.dtype.element_ty), mask=is_there)


@triton.jit
def turn_kernel(
    qkv,  # (tokens, query heads, key heads, value heads; HEAD_DIM): queries are turned in place
    rotations,  # (tokens, HEAD_DIM / 2, 2), float32: cosine and sine of each one's position
    write_rows,  # (tokens,), int64
    cache,  # (rows, 2, key heads, HEAD_DIM)
    query_weight,  # (HEAD_DIM,) where HAS_NORMS, as the next
    key_weight,
    query_eps,
    key_eps,
    token_row,
    cache_row,
    num_heads,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,  # HEAD_DIM / 2, padded to a power of two
    HAS_NORMS: tl.constexpr,
):
    """A program a token and head: rotates queries and keys by their position, and puts keys and values where the cache keeps them."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    pair = tl.arange(0, HALF)
    is_there = pair < HEAD_DIM // 2
    source = qkv + token * token_row + head * HEAD_DIM
    real = tl.load(source + 2 * pair, mask=is_there, other=0.0)
    imaginary = tl.load(source + 2 * pair + 1, mask=is_there, other=0.0)
    target = source
    if head >= num_heads:
        row = tl.load(write_rows + token)
        target = cache + row * cache_row + (head - num_heads) * HEAD_DIM
    if head < num_heads + num_kv_heads:
        first = real.to(tl.float32)
        second = imaginary.to(tl.float32)
        if HAS_NORMS:
            weight = query_weight
            eps = query_eps
            if head >= num_heads:
                weight = key_weight
                eps = key_eps
            mean = (tl.sum(first * first, 0) + tl.sum(second * second, 0)) / HEAD_DIM
            share = 1.0 / tl.sqrt(mean + eps)
            first = first * share * tl.load(weight + 2 * pair, mask=is_there, other=0.0).to(tl.float32)
            second = second * share * tl.load(weight + 2 * pair + 1, mask=is_there, other=0.0).to(tl.float32)
            first = first.to(qkv.dtype.element_ty).to(tl.float32)
            second = second.to(qkv.dtype.element_ty).to(tl.float32)
        turn = rotations + token * HEAD_DIM
        cosine = tl.load(turn + 2 * pair, mask=is_there, other=0.0)
        sine = tl.load(turn + 2 * pair + 1, mask=is_there, other=0.0)
        real = (first * cosine - second * sine).to(qkv.dtype.element_ty)
        imaginary = (first * sine + second * cosine).to(qkv.dtype.element_ty)
    tl.store(target + 2 * pair, real, mask=is_there)
    tl.store(target + 2 * pair + 1, imaginary, mask=is_there)


@triton.jit
def quantize_kernel(
    rows,
    out,  # (rows of out, out_width), int8, or the bytes of float8_e4m3fn: rows and columns beyond those given become zeros
    scales,  # (rows of out,), float32
    matrix,  # (64, 64), symmetric, where IS_SPREAD
    num_rows,
    width,
    out_width,
    rows_row,
    out_row,
    largest,
    GROUPS: tl.constexpr,  # of 64 numbers, padded to a power of two
    IS_SPREAD: tl.constexpr,
    IS_INTEGER: tl.constexpr,
):
    """Each row by its own scale into 8 bits. A row that is not finite has a scale that is not. A program a row, which it holds whole."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    within = tl.arange(0, 64)
    at = group[:, None] * 64 + within[None, :]
    is_there = at < tl.where(row < num_rows, width, 0)
    numbers = tl.load(rows + row * rows_row + at, mask=is_there, other=0.0)
    exact = numbers.to(tl.float32)
    if IS_SPREAD:
        turned = tl.dot(numbers, tl.load(matrix + within[:, None] * 64 + within[None, :]), input_precision="ieee")
        turned = turned.to(rows.dtype.element_ty).to(tl.float32)
        exact = tl.where((group < width // 64)[:, None], turned, exact)  # what is beyond the last whole group stays as it is
    magnitude = tl.abs(exact)
    is_finite = magnitude < float("inf")
    most = tl.max(tl.where(is_finite, magnitude, 0.0))  # over both axes at once: one after the other ends Triton 3.6's compiler on sm_100
    num_bad = tl.sum(tl.where(is_finite, 0, 1))
    scale = tl.maximum(most, 1e-30) / largest
    scaled = tl.where(is_finite, exact / scale, 0.0)
    if IS_INTEGER:
        whole = (scaled + 12582912.0) - 12582912.0  # 1.5 * 2^23: rounded to whole numbers, halves to even ones, as torch's are
        tl.store(out + row * out_row + at, whole.to(tl.int8), mask=at < out_width)
    else:
        tl.store(out + row * out_row + at, _three_bits(scaled).to(tl.float8e4nv).to(tl.uint8, bitcast=True), mask=at < out_width)
    tl.store(scales + row, tl.where(num_bad > 0, float("nan"), scale))


@triton.jit
def descale_kernel(
    sums,  # (rows, columns), int32 or float32
    row_scales,
    column_scales,
    bias,  # (columns,) where HAS_BIAS
    added,  # (rows, width) where HAS_ADDED
    out,  # (rows, width)
    width,
    sums_row,
    added_row,
    out_row,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ADDED: tl.constexpr,
    IS_GATED: tl.constexpr,  # columns are gate and up, of `width` each
):
    """Products of 8-bit numbers with their scales, and what follows them: a bias, a sum with other rows, or silu(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = at < width
    row_scale = tl.load(row_scales + row)
    value = tl.load(sums + row * sums_row + at, mask=is_there, other=0).to(tl.float32) * row_scale
    value = value * tl.load(column_scales + at, mask=is_there, other=0.0)
    if HAS_BIAS:
        value += tl.load(bias + at, mask=is_there, other=0.0).to(tl.float32)
    if IS_GATED:
        up = tl.load(sums + row * sums_row + width + at, mask=is_there, other=0).to(tl.float32) * row_scale
        up = up * tl.load(column_scales + width + at, mask=is_there, other=0.0)
        if HAS_BIAS:
            up += tl.load(bias + width + at, mask=is_there, other=0.0).to(tl.float32)
        value = _silu(value) * up
    if HAS_ADDED:
        value += tl.load(added + row * added_row + at, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + row * out_row + at, value.to(out.dtype.element_ty), mask=is_there)
