"""Rows of logits: what each says of a token, raw and shaped by temperature, top_k, top_p and min_p, and which token a number draws.

Each row by one thread, in one order, while it is in its cache. What the filters keep is said by a cut: the least likely logit that is
kept, and the last token of that logit.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numba.extending import register_jitable

from polyhead.server.engine.compiled.jobs import LOGITS_ROW
from polyhead.server.engine.compiled.lanes import (
    constant,
    differs,
    exp,
    largest_of,
    load,
    load_first,
    numbered,
    splat,
    store,
    total,
    where_less,
)
from polyhead.server.engine.compiled.machine import LANES, doubles, floats, ints, longs, memory

GROUP = 256  # tokens whose weights are summed in float32; sums of these are added up in float64
NUM_BUCKETS, BUCKETS_PER_NAT = 1024, 16  # of tokens by how much less likely they are than the likeliest
ALL = np.float32(1 << 25)  # past the last token of any vocabulary
LEAST = np.float32(-np.inf)


@njit
def read_rows(job, thread):
    """This thread's rows."""
    rows = carray(memory(job.x), (job.num_rows,), LOGITS_ROW)
    room = job.out + thread * room_bytes(job.width)
    for number in range(job.num_rows * thread // job.num_threads, job.num_rows * (thread + 1) // job.num_threads):
        _read(rows[number], job.width, room)


@register_jitable
def room_bytes(width):
    """Of each thread, for vocabularies of `width`: a row's sums and the counts of its buckets, or keys of its tokens."""
    return 8 * (width + width // GROUP + 1 + 2 * NUM_BUCKETS + LANES) + 4 * GROUP


@njit
def _read(row, width, room):
    largest, group = _largest(row.logits, width)
    weight = _sum(row.logits, width, largest, np.float32(1), LEAST, ALL, room)
    row.largest, row.log_sum = largest, np.log(weight)
    if row.token_id >= width:  # beyond the logits: what stands there is somebody else's
        row.log_sum = np.nan
    if np.isnan(row.log_sum):
        row.token_id, row.logprob, row.sampling_logprob = 0, row.log_sum, row.log_sum
        return
    if row.is_plain:
        if row.token_id < 0:
            row.token_id = _pick(row.logits, width, largest, np.float32(1), LEAST, ALL, row.number, room)
        row.logprob = (floats(row.logits)[row.token_id] - largest) - row.log_sum
        row.sampling_logprob = row.logprob
        return
    if row.shaped != row.logits:
        largest, group = _largest(row.shaped, width)
    if row.temperature == 0.0:
        likeliest = _first_of(row.shaped, width, largest, group)
        if row.token_id < 0:
            row.token_id = likeliest
        row.sampling_logprob = 0.0 if row.token_id == likeliest else -np.inf
    else:
        _read_shaped(row, width, largest, room)
    row.logprob = (floats(row.logits)[row.token_id] - row.largest) - row.log_sum


@njit
def _read_shaped(row, width, largest, room):
    temperature = np.float32(row.temperature)
    cut, last = _cut(row, width, largest, temperature, room)
    log_sum = np.float32(np.log(_sum(row.shaped, width, largest, temperature, cut, last, room)))
    if row.token_id < 0:
        row.token_id = _pick(row.shaped, width, largest, temperature, cut, last, row.number, room)
    logit = floats(row.shaped)[row.token_id]
    is_kept = logit > cut or (logit == cut and np.float32(row.token_id) <= last)
    row.sampling_logprob = (logit - largest) / temperature - log_sum if is_kept else LEAST


@njit
def _numbers(logits, at, width):
    """The vector from a token on; nothing can be less likely than what comes after the last token."""
    if at + LANES <= width:
        return load(logits + at * 4)
    return where_less(numbered(), splat(np.float32(width - at)), load_first(logits + at * 4, width - at), splat(LEAST))


@njit
def _largest(logits, width):
    """(the largest logit, the first token of the first group that has it)"""
    largest, found = LEAST, 0
    for group in range(0, width, GROUP):
        top = splat(LEAST)
        for at in range(group, min(group + GROUP, width), LANES):
            numbers = _numbers(logits, at, width)
            top = where_less(top, numbers, numbers, top)
        highest = largest_of(top)
        if highest > largest:
            largest, found = highest, group
    return largest, found


@njit
def _first_of(logits, width, largest, group):
    for token in range(group, min(group + GROUP, width)):
        if floats(logits)[token] == largest:
            return token
    return group  # never: a row that is not finite does not come here


@njit
def _weights(logits, at, width, largest, temperature, cut, last):
    """exp((logit - largest) / temperature) of the tokens from `at` on, 0 where they are cut."""
    numbers = _numbers(logits, at, width)
    steps = numbers - splat(largest)
    if temperature != np.float32(1):
        steps = steps / splat(temperature)  # a tiny temperature overflows to -inf, never to inf
    weights = exp(steps)
    if cut == LEAST:
        return weights
    tied = where_less(splat(last), numbered() + splat(np.float32(at)), constant(0.0), weights)
    return where_less(numbers, splat(cut), constant(0.0), where_less(splat(cut), numbers, weights, tied))


@njit
def _sum(logits, width, largest, temperature, cut, last, cumulative):
    """Of all weights, NaN if one is; and what it comes to after each group, at `cumulative`."""
    so_far = 0.0
    for group in range(0, width, GROUP):
        weights = constant(0.0)
        for at in range(group, min(group + GROUP, width), LANES):
            weights = weights + _weights(logits, at, width, largest, temperature, cut, last)
        so_far += np.float64(total(weights))
        doubles(cumulative)[group // GROUP] = so_far
    return so_far


@njit
def _pick(logits, width, largest, temperature, cut, last, number, cumulative):
    """The token at which the weights so far exceed `number` of them all. One of weight 0 is never found."""
    sums, num_groups = doubles(cumulative), (width + GROUP - 1) // GROUP
    target, group = number * sums[num_groups - 1], 0
    while group < num_groups - 1 and not sums[group] > target:
        group += 1
    while group > 0 and sums[group] == sums[group - 1]:  # rounding led past the last weight
        group -= 1
    first, end = group * GROUP, min(group * GROUP + GROUP, width)
    weights = cumulative + num_groups * 8
    for at in range(first, end, LANES):
        store(weights + (at - first) * 4, _weights(logits, at, width, largest, temperature, cut, last))
    found, so_far = first, sums[group - 1] if group else 0.0
    for token in range(first, end):
        weight = floats(weights)[token - first]
        so_far += np.float64(weight)
        if weight > np.float32(0):
            found = token
            if so_far > target:
                break
    return found


# ---- filters: top_k, of what it leaves top_p, of what that leaves min_p


@njit
def _cut(row, width, largest, temperature, room):
    """(the least likely logit that is kept, the last token of that logit that is)"""
    cut, last = LEAST, ALL
    if 0 < row.top_k < width or row.top_p < 1.0:
        counts, sums = longs(room), doubles(room + 8 * NUM_BUCKETS)
        lanes, keys = room + 16 * NUM_BUCKETS, longs(room + 16 * NUM_BUCKETS + 8 * LANES)
        _fill_buckets(row.shaped, width, largest, temperature, counts, sums, lanes)
        left = np.inf
        if 0 < row.top_k < width:
            bucket, before = 0, 0
            while before + counts[bucket] < row.top_k:
                before += counts[bucket]
                bucket += 1
            num_keys = _sort_bucket(row.shaped, width, largest, temperature, bucket, keys, lanes)
            cut = floats(row.shaped)[_token(keys[row.top_k - before - 1])]
            left = 0.0
            for each in range(bucket):
                left += sums[each]
            for each in range(num_keys):
                logit = floats(row.shaped)[_token(keys[each])]
                if logit >= cut:
                    left += np.exp(np.float64((logit - largest) / temperature))
        if row.top_p < 1.0:
            cut, last = _nucleus(row, width, largest, temperature, left, counts, sums, keys, lanes, cut)
    if row.min_p > 0.0:
        least = largest + np.float32(np.log(row.min_p)) * temperature
        if least > cut:
            cut, last = least, ALL
    return cut, last


@njit
def _fill_buckets(logits, width, largest, temperature, counts, sums, room):
    """How many tokens each bucket has, and their weight."""
    for bucket in range(NUM_BUCKETS):
        counts[bucket], sums[bucket] = 0, 0.0
    for at in range(0, width, LANES):
        store(room, _distances(logits, at, width, largest, temperature))
        store(room + LANES * 4, _weights(logits, at, width, largest, temperature, LEAST, ALL))
        for lane in range(min(LANES, width - at)):
            bucket = int(floats(room)[lane])
            counts[bucket] += 1
            sums[bucket] += np.float64(floats(room)[LANES + lane])


@njit
def _distances(logits, at, width, largest, temperature):
    """How far the tokens from `at` on are below the likeliest, in buckets; what is far below has the last one to itself."""
    steps = splat(largest) - _numbers(logits, at, width)
    if temperature != np.float32(1):
        steps = steps / splat(temperature)
    distances, last = steps * constant(BUCKETS_PER_NAT), constant(NUM_BUCKETS - 1)
    return where_less(distances, last, distances, last)


@njit
def _sort_bucket(logits, width, largest, temperature, bucket, keys, room):
    """Keys of a bucket's tokens, the likeliest first, and of equal ones the first. Returns how many."""
    first, end, num_keys = splat(np.float32(bucket)), splat(np.float32(bucket + 1)), 0
    for at in range(0, width, LANES):
        distances = _distances(logits, at, width, largest, temperature)
        is_inside = where_less(distances, first, constant(0.0), where_less(distances, end, constant(1.0), constant(0.0)))
        if differs(is_inside, constant(0.0)):
            store(room, is_inside)
            for lane in range(min(LANES, width - at)):
                if floats(room)[lane] > np.float32(0):
                    keys[num_keys] = (np.int64(_descending(ints(logits)[at + lane])) << 32) | (at + lane)
                    num_keys += 1
    carray(keys, (num_keys,)).sort()
    return num_keys


@njit
def _descending(bits):
    """Those of a float32, as an int32 that is smaller the larger the number is."""
    return ~(bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF)))


@njit
def _token(key):
    return key & 0xFFFFFFFF


@njit
def _nucleus(row, width, largest, temperature, left, counts, sums, keys, lanes, least):
    """The cut that keeps the fewest likeliest tokens which reach top_p of the weight that is `left`, none below `least`."""
    if left == np.inf:
        left = 0.0
        for bucket in range(NUM_BUCKETS):
            left += sums[bucket]
    target, before, bucket = row.top_p * left, 0.0, 0
    while bucket < NUM_BUCKETS - 1 and before + sums[bucket] < target:
        before += sums[bucket]
        bucket += 1
    while bucket > 0 and counts[bucket] == 0:
        bucket -= 1
        before -= sums[bucket]
    num_keys = _sort_bucket(row.shaped, width, largest, temperature, bucket, keys, lanes)
    cut, last = least, ALL
    for each in range(num_keys):
        logit = floats(row.shaped)[_token(keys[each])]
        if logit < least:
            break
        cut, last = logit, np.float32(_token(keys[each]))
        before += np.exp(np.float64((logit - largest) / temperature))
        if before >= target:
            break
    return cut, last
