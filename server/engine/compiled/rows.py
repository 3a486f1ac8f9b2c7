"""Row by row: norm, spreading, quantisation, rotation, a token's place in the cache, and the gate of the feed-forward net."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from polyhead.server.engine.compiled.lanes import (
    absolute,
    constant,
    largest_of,
    load,
    load_first,
    rounded,
    silu,
    splat,
    spread_block,
    store,
    store_bytes_first,
    store_first,
    store_half,
    store_halves_first,
    swapped_pairs,
    total,
    where_less,
)
from polyhead.server.engine.compiled.machine import ACTIVATION_LEVELS, LANES, bytes_at, floats, ints, longs
from polyhead.server.engine.layers.hadamard import BLOCK

SMALLEST = 1e-30  # a row of zeros is divided by this
LEVELS = np.float32(ACTIVATION_LEVELS)


@njit
def norm(x, weight, out, width, eps):
    """Root-mean-square norm of one row."""
    squares = constant(0.0)
    for i in range(0, width, LANES):
        numbers = load_first(x + i * 4, width - i)
        squares = squares + numbers * numbers
    scale = splat(np.float32(1) / np.sqrt(total(squares) / np.float32(width) + np.float32(eps)))
    for i in range(0, width, LANES):
        store_first(out + i * 4, load_first(x + i * 4, width - i) * scale * load_first(weight + i * 4, width - i), width - i)


@njit
def spread(source, target, width):
    """Each whole block of a row times a Hadamard matrix, as hadamard.py says; what is left over stays. `target` may be the source."""
    whole = width // BLOCK * BLOCK * 4
    for at in range(0, whole, BLOCK * 4):
        spread_block(source + at, target + at)
    for at in range(whole, width * 4, LANES * 4):
        store_first(target + at, load_first(source + at, width - at // 4), width - at // 4)


@njit
def absmax(x, width):
    """(the largest size in one row, at least SMALLEST; 0, or NaN if a number is not finite)"""
    largest, trouble = constant(SMALLEST), constant(0.0)
    for i in range(0, width, LANES):
        numbers = load_first(x + i * 4, width - i)
        sizes = absolute(numbers)
        largest = where_less(largest, sizes, sizes, largest)
        trouble = trouble + numbers * constant(0.0)
    return largest_of(largest), total(trouble)


@njit
def quantise(x, out, width, padded_width, scales, sums, row):
    """One row to int8, with its scale and the sum of what came out.

    A number that is not finite makes the scale NaN, and so all of the row's products.
    """
    top, trouble = absmax(x, width)
    steps = splat(LEVELS / top if trouble == np.float32(0) else np.float32(0))
    levels = constant(0.0)
    for i in range(0, width, LANES):
        numbers = load_first(x + i * 4, width - i) * steps if trouble == np.float32(0) else constant(0.0)
        numbers = rounded(numbers)
        store_bytes_first(out + i, numbers, width - i)
        levels = levels + numbers
    for i in range(width, padded_width):
        bytes_at(out)[i] = np.int8(0)
    floats(scales)[row] = top / LEVELS + trouble
    ints(sums)[row] = np.int32(total(levels))


@njit
def turn(row, rotations, num_heads, head_dim):
    """Rotate the pairs of each head in place: x * (cos, cos) + (other of the pair) * (-sin, sin)."""
    for head in range(num_heads):
        for i in range(0, head_dim, LANES):
            at, left = row + (head * head_dim + i) * 4, head_dim - i
            numbers = load_first(at, left)
            cosines, sines = load_first(rotations + i * 4, left), load_first(rotations + (head_dim + i) * 4, left)
            store_first(at, numbers * cosines + swapped_pairs(numbers) * sines, left)


@njit
def place_keys(job, layer, thread):
    """Rotate this thread's share of queries and keys, and write keys and values where the cache has room for them."""
    num_turned, head_dim = job.num_heads + job.num_kv_heads, job.head_dim
    width = (num_turned + job.num_kv_heads) * head_dim
    positions = longs(job.positions)
    for row in range(job.num_rows * thread // job.num_threads, job.num_rows * (thread + 1) // job.num_threads):
        at = job.qkv + row * width * 4
        if layer.query_norm:
            for head in range(num_turned):
                weight = layer.query_norm if head < job.num_heads else layer.key_norm
                norm(at + head * head_dim * 4, weight, at + head * head_dim * 4, head_dim, layer.eps)
        turn(at, job.rotations + positions[row] * 2 * head_dim * 4, num_turned, head_dim)
    size, write_rows = job.block_size, longs(job.write_rows)
    for new in range(job.num_new):
        row = longs(job.new_rows)[new] if job.new_rows else new
        if job.num_rows * thread // job.num_threads <= row < job.num_rows * (thread + 1) // job.num_threads:
            slot, token = write_rows[new] // size, write_rows[new] % size
            for head in range(job.num_kv_heads):
                key = job.qkv + (row * width + (job.num_heads + head) * head_dim) * 4
                value = key + job.num_kv_heads * head_dim * 4
                keys, values = keys_at(job, layer, slot, head), values_at(job, layer, slot, head)
                if job.number_bytes == 2:
                    for i in range(head_dim):
                        store_half(keys + (i * size + token) * 2, floats(key)[i])
                    for i in range(0, head_dim, LANES):
                        store_halves_first(values + (token * head_dim + i) * 2, load_first(value + i * 4, head_dim - i), head_dim - i)
                    continue
                for i in range(head_dim):
                    floats(keys)[i * size + token] = floats(key)[i]
                for i in range(0, head_dim, LANES):
                    store_first(values + (token * head_dim + i) * 4, load_first(value + i * 4, head_dim - i), head_dim - i)


@njit
def keys_at(job, layer, slot, kv_head):
    """(head_dim, block_size): side by side what stands at the same place of a block's keys, as attention.py takes them."""
    return longs(job.cache)[layer.index] + (slot * 2 * job.num_kv_heads + kv_head) * job.block_size * job.head_dim * job.number_bytes


@njit
def values_at(job, layer, slot, kv_head):
    """(block_size, head_dim). After a block's keys, of all heads, come its values."""
    return keys_at(job, layer, slot, job.num_kv_heads + kv_head)


@njit
def gate(job, thread):
    """x = silu(x) * out, this thread's share of the numbers. Rows are padded to whole vectors."""
    num_vectors = job.num_rows * job.width // LANES
    for vector in range(num_vectors * thread // job.num_threads, num_vectors * (thread + 1) // job.num_threads):
        at = vector * LANES * 4
        store(job.x + at, silu(load(job.x + at)) * load(job.out + at))


@njit
def keep_tap(job, thread):
    """Copy this thread's share of the residual stream to where it is kept."""
    rows = longs(job.tap_rows)
    for row in range(job.num_rows * thread // job.num_threads, job.num_rows * (thread + 1) // job.num_threads):
        source, target = job.x + row * job.width * 4, job.taps + rows[row] * job.width * 4
        for i in range(0, job.width, LANES):
            store_first(target + i * 4, load_first(source + i * 4, job.width - i), job.width - i)


@njit
def keep_asked(job):
    """Move the rows that are asked for to the front: of the residual stream and of the queries. One thread; rows are ascending."""
    width = (job.num_heads + 2 * job.num_kv_heads) * job.head_dim
    asked = longs(job.asked_rows)
    for target in range(job.num_asked):
        source = asked[target]
        if source != target:
            from_x, to_x = floats(job.x + source * job.width * 4), floats(job.x + target * job.width * 4)
            for i in range(job.width):
                to_x[i] = from_x[i]
            from_q, to_q = floats(job.qkv + source * width * 4), floats(job.qkv + target * width * 4)
            for i in range(job.num_heads * job.head_dim):
                to_q[i] = from_q[i]
