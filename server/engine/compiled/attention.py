"""Queries over the blocks of a cache, as they lie. Softmax in one pass over the keys (Milakov and Gimelshein, 2018; Dao et al., 2022).

The lanes of a vector hold queries: all heads that share a key head, of one token or of several that follow each other. So a decoded token
and a prefilled one go the same way, and each lane's arithmetic follows from its own position.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import carray, njit

from polyhead.server.engine.compiled.jobs import SEGMENT
from polyhead.server.engine.compiled.lanes import constant, differs, exp, load, splat, store, where_less
from polyhead.server.engine.compiled.machine import LANES, floats, longs, memory, thin_rows, thin_rows_more

UNSEEN = 1 << 23  # a window that no text fills
CHUNK_KEYS = 128  # whose largest score is found before their sums are added; counted from position 0


@njit
def attend(job, layer, num_segments, segments, slots, scratch, thread):
    """All queries of the segments; the threads take key heads and groups of lanes in turn."""
    group = job.num_heads // job.num_kv_heads
    turn = 0
    for each in carray(memory(segments), (num_segments,), SEGMENT):
        num_lanes = each.num_rows * group
        for first in range(0, num_lanes, LANES):
            for head in range(job.num_kv_heads):
                if turn % job.num_threads == thread:
                    _attend_lanes(job, layer, each, slots + each.slots * 8, head, first, min(LANES, num_lanes - first), scratch)
                turn += 1


@njit
def _attend_lanes(job, layer, segment, slots, kv_head, first, num_lanes, scratch):
    """Lane i is query first + i of the segment: of its token (first + i) // group, of that head among those that share `kv_head`."""
    head_dim, size = job.head_dim, job.block_size
    group = job.num_heads // job.num_kv_heads
    queries = scratch
    totals = queries + head_dim * LANES * 4
    scores = totals + head_dim * LANES * 4
    _load_queries(job, layer, segment, kv_head, first, num_lanes, queries)
    for i in range(head_dim):
        store(totals + i * LANES * 4, constant(0.0))
    _store_ends(segment, group, first, num_lanes, scores)  # whose room is free until there are scores
    ends, window = load(scores), splat(np.float32(layer.window if layer.window else UNSEEN))
    first_end, last_key = segment.start + first // group + 1, segment.start + (first + num_lanes - 1) // group + 1
    largest, weights = constant(-np.inf), constant(0.0)
    token_stride = 2 * job.num_kv_heads * head_dim * 4
    base = longs(job.cache)[layer.index] + kv_head * head_dim * 4
    chunk_blocks = max(1, CHUNK_KEYS // size)
    first_key = max(0, first_end - layer.window) if layer.window else 0
    for chunk in range(first_key // (chunk_blocks * size), (last_key + chunk_blocks * size - 1) // (chunk_blocks * size)):
        first_block = chunk * chunk_blocks
        last_block = min(first_block + chunk_blocks, (last_key + size - 1) // size)
        for block in range(first_block, last_block):
            keys = base + longs(slots)[block] * size * token_stride
            target = scores + (block - first_block) * size * LANES * 4
            _tiles(min(size, last_key - block * size), keys, token_stride, 4, queries, head_dim, target)
        num_keys = min(last_block * size, last_key) - first_block * size
        largest, weights = _softmax(scores, first_block * size, num_keys, ends, window, largest, weights, totals, head_dim)
        for block in range(first_block, last_block):
            values = base + longs(slots)[block] * size * token_stride + token_stride // 2
            source = scores + (block - first_block) * size * LANES * 4
            _more_tiles(head_dim, values, 4, token_stride, source, min(size, last_key - block * size), totals)
    for i in range(head_dim):
        store(totals + i * LANES * 4, load(totals + i * LANES * 4) / weights)
    for lane in range(num_lanes):
        row, head = segment.row + (first + lane) // group, kv_head * group + (first + lane) % group
        target = floats(job.attended + (row * job.num_heads + head) * head_dim * 4)
        for i in range(head_dim):
            target[i] = floats(totals)[i * LANES + lane]


@njit
def _softmax(scores, first_key, num_keys, ends, window, largest, weights, totals, head_dim):
    """Scores become weights, relative to the largest so far; what was summed relative to an earlier one is scaled down.

    Returns each lane's largest score and the sum of its weights.
    """
    before = largest
    for key in range(num_keys):
        position = splat(np.float32(first_key + key))
        score = where_less(position, ends, load(scores + key * LANES * 4), constant(-np.inf))
        score = where_less(position + window, ends, constant(-np.inf), score)
        store(scores + key * LANES * 4, score)
        largest = where_less(largest, score, score, largest)
    finite = where_less(constant(-np.inf), largest, largest, constant(0.0))
    if differs(before, largest):
        share = exp(before - finite)
        weights = weights * share
        for i in range(head_dim):
            store(totals + i * LANES * 4, load(totals + i * LANES * 4) * share)
    for key in range(num_keys):
        weight = exp(load(scores + key * LANES * 4) - finite)
        store(scores + key * LANES * 4, weight)
        weights = weights + weight
    return largest, weights


@njit
def _store_ends(segment, group, first, num_lanes, ends):
    """One past the last key that each lane sees. Lanes past the last repeat its."""
    for lane in range(LANES):
        floats(ends)[lane] = np.float32(segment.start + (first + min(lane, num_lanes - 1)) // group + 1)


@njit
def _load_queries(job, layer, segment, kv_head, first, num_lanes, queries):
    """Scaled queries across the lanes; zeros in lanes past the last."""
    head_dim = job.head_dim
    group = job.num_heads // job.num_kv_heads
    width = (job.num_heads + 2 * job.num_kv_heads) * head_dim
    target, scale = floats(queries), np.float32(layer.scale)
    if num_lanes < LANES:
        for i in range(head_dim):
            store(queries + i * LANES * 4, constant(0.0))
    for lane in range(num_lanes):
        token, head = (first + lane) // group, kv_head * group + (first + lane) % group
        source = floats(job.qkv + ((segment.row + token) * width + head * head_dim) * 4)
        for i in range(head_dim):
            target[i * LANES + lane] = source[i] * scale


@njit
def _tiles(num_rows, a, row_stride, step_stride, panel, num_steps, out):
    done = 0
    while done < num_rows:
        done += thin_rows(num_rows - done, a + done * row_stride, row_stride, step_stride, panel, num_steps, out + done * LANES * 4)


@njit
def _more_tiles(num_rows, a, row_stride, step_stride, panel, num_steps, out):
    done = 0
    while done < num_rows:
        done += thin_rows_more(num_rows - done, a + done * row_stride, row_stride, step_stride, panel, num_steps, out + done * LANES * 4)
