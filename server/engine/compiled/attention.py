"""Queries over the blocks of a cache, as they lie. Softmax in one pass over the keys (Milakov and Gimelshein, 2018; Dao et al., 2022).

Queries that share a key head, of one token or of several that follow each other, go together. Many of them stand side by side in the lanes
of a vector, and keys come one after the other; of a few, as in decoding, LANES keys stand side by side. Both ways do the same arithmetic in
the same order, so a decoded token and a prefilled one have the same bits: each product's sum runs over one query's numbers or one text's
tokens in order, and a sum of weights is LANES sums, by a key's place in its block, folded at the end.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import carray, njit

from polyhead.server.engine.compiled.jobs import SCRATCH_BYTES, SEGMENT
from polyhead.server.engine.compiled.lanes import (
    constant,
    differs,
    exp,
    largest_of,
    load,
    load_halves,
    numbered,
    splat,
    store,
    store_first,
    total,
    where_less,
)
from polyhead.server.engine.compiled.machine import (
    LANES,
    VECTOR_BYTES,
    few_rows,
    few_rows_more,
    floats,
    longs,
    memory,
    thin_rows,
    thin_rows_more,
)
from polyhead.server.engine.compiled.rows import keys_at, values_at

UNSEEN = 1 << 23  # a window that no text fills
CHUNK_KEYS = 128  # whose largest score is found before their sums are added; counted from position 0
FEW = LANES // 2  # queries; more take fewer instructions side by side
MOST_VECTORS = CHUNK_KEYS  # of a chunk's scores, if a block has a single token
PLACE_BYTES = 3 * 8
WIDENED_AT = SCRATCH_BYTES // 2  # in a thread's scratch: numbers of a block in float32
LARGEST_WIDENED = (SCRATCH_BYTES - WIDENED_AT) // 4  # so many numbers of a block


@njit
def attend(job, layer, num_segments, segments, slots, scratch, thread):
    """All queries of the segments; the threads take key heads and groups of queries in turn."""
    group = job.num_heads // job.num_kv_heads
    turn = 0
    for each in carray(memory(segments), (num_segments,), SEGMENT):
        num_queries = each.num_rows * group
        for first in range(0, num_queries, LANES):
            for head in range(job.num_kv_heads):
                if turn % job.num_threads == thread:
                    some = min(LANES, num_queries - first)
                    is_finite = _attend(job, layer, each, slots + each.slots * 8, head, first, some, scratch)
                    if not is_finite and each.num_rows > 1:
                        _attend_by_token(job, layer, each, slots + each.slots * 8, head, first, some, scratch)
                turn += 1


@njit
def _attend(job, layer, segment, slots, kv_head, first, num_queries, scratch):
    """Returns whether every number is finite."""
    if num_queries <= FEW:
        return _attend_few(job, layer, segment, slots, kv_head, first, num_queries, scratch)
    return _attend_lanes(job, layer, segment, slots, kv_head, first, num_queries, scratch)


@njit
def _attend_by_token(job, layer, segment, slots, kv_head, first, num_queries, scratch):
    """Queries that stand side by side read the values of later tokens, too, and weigh them with 0. One that is not finite stays what it is,
    and may not reach an earlier token: what is kept of that one serves texts that go on in another way."""
    group, done = job.num_heads // job.num_kv_heads, 0
    while done < num_queries:
        some = min(group - (first + done) % group, num_queries - done)
        _attend(job, layer, segment, slots, kv_head, first + done, some, scratch)
        done += some


@njit
def _chunks(job, layer, segment, first, some):
    """(chunk of the first key that these queries see, one past that of the last, blocks of a chunk, one past the last key)"""
    group, size = job.num_heads // job.num_kv_heads, job.block_size
    chunk_blocks = max(1, CHUNK_KEYS // size)
    first_end, last_key = segment.start + first // group + 1, segment.start + (first + some - 1) // group + 1
    first_key = max(0, first_end - layer.window) if layer.window else 0
    return first_key // (chunk_blocks * size), -(-last_key // (chunk_blocks * size)), chunk_blocks, last_key


@njit
def _query_at(job, segment, kv_head, query):
    """(row, head) of one of the queries that share a key head."""
    group = job.num_heads // job.num_kv_heads
    return segment.row + query // group, kv_head * group + query % group


@njit
def _wide(job, address, count, scratch):
    """Where so many numbers of a block are in float32: where they lie, or in a room that the next call takes."""
    if job.number_bytes == 4:
        return address
    room = scratch + WIDENED_AT
    for i in range(0, count, LANES):
        store(room + i * 4, load_halves(address + i * 2))
    return room


# ---- queries side by side


@njit
def _attend_lanes(job, layer, segment, slots, kv_head, first, num_lanes, scratch):
    """Lane i is query first + i of the segment: of its token (first + i) // group. Returns whether every number is finite."""
    head_dim, size = job.head_dim, job.block_size
    queries = scratch
    totals = queries + head_dim * VECTOR_BYTES
    sums = totals + head_dim * VECTOR_BYTES
    scores = sums + LANES * VECTOR_BYTES
    _load_queries(job, layer, segment, kv_head, first, num_lanes, queries)
    for i in range(head_dim + LANES):
        store(totals + i * VECTOR_BYTES, constant(0.0))
    _store_ends(segment, job.num_heads // job.num_kv_heads, first, num_lanes, scores)  # whose room is free until there are scores
    ends, window = load(scores), splat(np.float32(layer.window if layer.window else UNSEEN))
    first_chunk, last_chunk, chunk_blocks, last_key = _chunks(job, layer, segment, first, num_lanes)
    largest = constant(-np.inf)
    for chunk in range(first_chunk, last_chunk):
        first_block = chunk * chunk_blocks
        last_block = min(first_block + chunk_blocks, (last_key + size - 1) // size)
        for block in range(first_block, last_block):
            keys, target = keys_at(job, layer, longs(slots)[block], kv_head), scores + (block - first_block) * size * VECTOR_BYTES
            keys = _wide(job, keys, size * head_dim, scratch)
            _tiles(min(size, last_key - block * size), keys, 4, size * 4, queries, head_dim, target)
        num_keys = min(last_block * size, last_key) - first_block * size
        largest = _softmax_lanes(scores, first_block * size, num_keys, ends, window, largest, sums, totals, head_dim, size)
        for block in range(first_block, last_block):
            values, source = values_at(job, layer, longs(slots)[block], kv_head), scores + (block - first_block) * size * VECTOR_BYTES
            num_keys = min(size, last_key - block * size)
            _more_tiles(head_dim, _wide(job, values, num_keys * head_dim, scratch), 4, head_dim * 4, source, num_keys, totals)
    weights, zeros = _fold(sums), constant(0.0)
    for i in range(head_dim):
        result = load(totals + i * VECTOR_BYTES) / weights
        store(totals + i * VECTOR_BYTES, result)
        zeros = zeros + result * constant(0.0)
    for lane in range(num_lanes):
        row, head = _query_at(job, segment, kv_head, first + lane)
        target = floats(job.attended + (row * job.num_heads + head) * head_dim * 4)
        for i in range(head_dim):
            target[i] = floats(totals)[i * LANES + lane]
    return not differs(zeros, zeros)  # unless one of them is NaN


@njit
def _softmax_lanes(scores, first_key, num_keys, ends, window, largest, sums, totals, head_dim, size):
    """Scores become weights, relative to the largest so far; what was summed relative to an earlier one is scaled down.

    Returns each lane's largest score.
    """
    before = largest
    for key in range(num_keys):
        position = splat(np.float32(first_key + key))
        score = where_less(position, ends, load(scores + key * VECTOR_BYTES), constant(-np.inf))
        score = where_less(position + window, ends, constant(-np.inf), score)
        store(scores + key * VECTOR_BYTES, score)
        largest = where_less(largest, score, score, largest)
    finite = where_less(constant(-np.inf), largest, largest, constant(0.0))
    if differs(before, largest):
        share = exp(before - finite)
        _scale(totals, head_dim, share)
        _scale(sums, LANES, share)
    for key in range(num_keys):
        weight = exp(load(scores + key * VECTOR_BYTES) - finite)
        store(scores + key * VECTOR_BYTES, weight)
        at = sums + key % size % LANES * VECTOR_BYTES
        store(at, load(at) + weight)
    return largest


@njit
def _scale(vectors, count, share):
    for i in range(count):
        store(vectors + i * VECTOR_BYTES, load(vectors + i * VECTOR_BYTES) * share)


@njit
def _fold(sums):
    """LANES vectors to one, half by half: as `total` folds the lanes of one."""
    width = LANES
    while width > 1:
        width //= 2
        for i in range(width):
            store(sums + i * VECTOR_BYTES, load(sums + i * VECTOR_BYTES) + load(sums + (i + width) * VECTOR_BYTES))
    return load(sums)


@njit
def _store_ends(segment, group, first, num_lanes, ends):
    """One past the last key that each lane sees. Lanes past the last repeat its."""
    for lane in range(LANES):
        floats(ends)[lane] = np.float32(segment.start + (first + min(lane, num_lanes - 1)) // group + 1)


@njit
def _load_queries(job, layer, segment, kv_head, first, num_lanes, queries):
    """Scaled queries across the lanes; zeros in lanes past the last."""
    head_dim = job.head_dim
    width = (job.num_heads + 2 * job.num_kv_heads) * head_dim
    target, scale = floats(queries), np.float32(layer.scale)
    if num_lanes < LANES:
        for i in range(head_dim):
            store(queries + i * VECTOR_BYTES, constant(0.0))
    for lane in range(num_lanes):
        row, head = _query_at(job, segment, kv_head, first + lane)
        source = floats(job.qkv + (row * width + head * head_dim) * 4)
        for i in range(head_dim):
            target[i * LANES + lane] = source[i] * scale


@njit
def _tiles(num_rows, a, row_stride, step_stride, panel, num_steps, out):
    done = 0
    while done < num_rows:
        at, target = a + done * row_stride, out + done * VECTOR_BYTES
        done += thin_rows(num_rows - done, at, row_stride, step_stride, panel, 0, num_steps, target)


@njit
def _more_tiles(num_rows, a, row_stride, step_stride, panel, num_steps, out):
    done = 0
    while done < num_rows:
        at, target = a + done * row_stride, out + done * VECTOR_BYTES
        done += thin_rows_more(num_rows - done, at, row_stride, step_stride, panel, 0, num_steps, target)


# ---- keys side by side


@njit
def _attend_few(job, layer, segment, slots, kv_head, first, num_queries, scratch):
    """Vectors of a few queries stand one after the other, `stride` from one such row of vectors to the next.

    So do scores, LANES keys to a vector, and a query's state: its largest score so far, its sums of weights, and its totals in parts.
    Returns whether every number is finite; what stands behind a head's last number may say no.
    """
    head_dim = job.head_dim
    group, width = job.num_heads // job.num_kv_heads, (job.num_heads + 2 * job.num_kv_heads) * head_dim
    stride = num_queries * VECTOR_BYTES
    num_parts = -(-head_dim // LANES)
    queries = scratch
    states = queries + num_queries * head_dim * 4
    totals = states + 2 * stride
    places = totals + num_parts * stride
    scores = places + PLACE_BYTES * MOST_VECTORS
    for query in range(num_queries):
        row, head = _query_at(job, segment, kv_head, first + query)
        source = floats(job.qkv + (row * width + head * head_dim) * 4)
        for i in range(head_dim):
            floats(queries)[query * head_dim + i] = source[i] * np.float32(layer.scale)
        store(states + query * VECTOR_BYTES, constant(-np.inf))
        for part in range(1, 2 + num_parts):
            store(states + part * stride + query * VECTOR_BYTES, constant(0.0))
    first_chunk, last_chunk, chunk_blocks, last_key = _chunks(job, layer, segment, first, num_queries)
    for chunk in range(first_chunk, last_chunk):
        first_block = chunk * chunk_blocks
        num_vectors = _score_few(
            job, layer, slots, kv_head, first_block, chunk_blocks, last_key, queries, num_queries, scores, places, scratch
        )
        for query in range(num_queries):
            end, mine = segment.start + (first + query) // group + 1, query * VECTOR_BYTES
            first_seen = end - layer.window if layer.window else 0
            _softmax_few(scores + mine, places, num_vectors, stride, first_seen, end, states + mine, num_parts)
        for vector in range(num_vectors):
            values, _, num_keys = _place(places, vector)
            values = _wide(job, values, num_keys * head_dim, scratch)
            for part in range(num_parts):
                at, target = scores + vector * stride, totals + part * stride
                _few_more_tiles(num_queries, at, VECTOR_BYTES, values + part * VECTOR_BYTES, head_dim * 4, num_keys, target)
    zeros = constant(0.0)
    for query in range(num_queries):
        row, head = _query_at(job, segment, kv_head, first + query)
        target, mine = job.attended + (row * job.num_heads + head) * head_dim * 4, query * VECTOR_BYTES
        weights = splat(total(load(states + stride + mine)))
        for part in range(num_parts):
            result = load(totals + part * stride + mine) / weights
            store_first(target + part * VECTOR_BYTES, result, head_dim - part * LANES)
            zeros = zeros + result * constant(0.0)
    return not differs(zeros, zeros)


@njit
def _score_few(job, layer, slots, kv_head, first_block, num_blocks, last_key, queries, num_queries, scores, places, scratch):
    """Scores of these blocks' keys as far as `last_key`, and each vector's place. Returns how many vectors.

    What stands behind a block's keys is read with the last of them; `_softmax_few` masks it.
    """
    head_dim, size = job.head_dim, job.block_size
    num_vectors = 0
    for block in range(first_block, min(first_block + num_blocks, (last_key + size - 1) // size)):
        slot = longs(slots)[block]
        keys, values = keys_at(job, layer, slot, kv_head), values_at(job, layer, slot, kv_head)
        left = min(size, last_key - block * size)
        keys = _wide(job, keys, size * head_dim, scratch)
        for key in range(0, left, LANES):
            target = scores + num_vectors * num_queries * VECTOR_BYTES
            _few_tiles(num_queries, queries, head_dim * 4, keys + key * 4, size * 4, head_dim, target)
            place = longs(places + num_vectors * PLACE_BYTES)
            place[0], place[1], place[2] = values + key * head_dim * job.number_bytes, block * size + key, min(LANES, left - key)
            num_vectors += 1
    return num_vectors


@njit
def _place(places, vector):
    """(address of the values, position of the first key, keys) of a vector of scores"""
    place = longs(places + vector * PLACE_BYTES)
    return place[0], place[1], place[2]


@njit
def _softmax_few(scores, places, num_vectors, stride, first_seen, end, state, num_parts):
    """`_softmax_lanes` of one query, which sees the keys from `first_seen` to before `end`."""
    lanes, top = numbered(), constant(-np.inf)
    for vector in range(num_vectors):
        _, first, num_keys = _place(places, vector)
        position, at = lanes + splat(np.float32(first)), scores + vector * stride
        score = where_less(position, splat(np.float32(min(end, first + num_keys))), load(at), constant(-np.inf))
        score = where_less(position, splat(np.float32(first_seen)), constant(-np.inf), score)
        store(at, score)
        top = where_less(top, score, score, top)
    before, now = floats(state)[0], largest_of(top)
    now = now if now > before else before
    finite = splat(now if now > np.float32(-np.inf) else np.float32(0))
    if now != before:
        share = exp(load(state) - finite)
        for part in range(1, 2 + num_parts):
            store(state + part * stride, load(state + part * stride) * share)
        store(state, splat(now))
    weights = load(state + stride)
    for vector in range(num_vectors):
        weight = exp(load(scores + vector * stride) - finite)
        store(scores + vector * stride, weight)
        weights = weights + weight
    store(state + stride, weights)


@njit
def _few_tiles(num_rows, a, row_stride, panel, panel_stride, num_steps, out):
    done = 0
    while done < num_rows:
        at, target = a + done * row_stride, out + done * VECTOR_BYTES
        done += few_rows(num_rows - done, at, row_stride, 4, panel, panel_stride, num_steps, target)


@njit
def _few_more_tiles(num_rows, a, row_stride, panel, panel_stride, num_steps, out):
    done = 0
    while done < num_rows:
        at, target = a + done * row_stride, out + done * VECTOR_BYTES
        done += few_rows_more(num_rows - done, at, row_stride, 4, panel, panel_stride, num_steps, target)
