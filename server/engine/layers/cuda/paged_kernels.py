"""Attention over a table of cache blocks, in Triton. Compiled when first launched, by paged.py.

A program takes TILE pairs of (query, head of one key head's group) and goes through the keys that they see, KEYS at a time, with a
running maximum and sum (online softmax: Milakov and Gimelshein, arXiv 1805.02867; blockwise over keys: FlashAttention, Dao et al.,
arXiv 2205.14135). All heads of a group read each key once. Where queries are few, the keys of a sequence are split among programs, whose
parts `merge_kernel` adds up (Flash-Decoding). Nothing past a sequence's end is read: a block's rest may hold anything.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["table_row", "left", "num_splits"])
def attend_kernel(
    queries,  # (tokens, heads, HEAD_DIM)
    keys,  # (blocks, BLOCK, key heads, HEAD_DIM), as values
    values,
    table,  # (sequences, blocks a row), int32
    query_starts,  # (sequences + 1,), int32
    num_keys,  # (sequences,), int32
    out,  # as queries
    part_sums,  # (tokens, heads, num_splits, HEAD_DIM), float32: where IS_SPLIT, instead of out
    part_norms,  # (tokens, heads, num_splits, 2), float32: maximum and sum of weights
    query_row,
    query_head,
    key_block,
    key_row,
    key_head,
    table_row,
    out_row,
    out_head,
    scale,
    softcap,  # 0: none
    left,  # a query sees so many keys before its own; negative: all
    num_splits,
    GROUP: tl.constexpr,  # query heads of a key head
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,  # HEAD_DIM, padded to a power of two
    BLOCK: tl.constexpr,  # tokens of a cache block
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2) // num_splits
    part = tl.program_id(2) % num_splits
    first_row = tl.load(query_starts + sequence)
    num_queries = tl.load(query_starts + sequence + 1) - first_row
    if tile * TILE >= num_queries * GROUP:
        return
    end = tl.load(num_keys + sequence)
    pair = tile * TILE + tl.arange(0, TILE)
    query = pair // GROUP
    head = kv_head * GROUP + pair % GROUP
    position = end - num_queries + query
    d = tl.arange(0, DIM)
    is_row = (pair < num_queries * GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    row = (first_row + query).to(tl.int64)
    q = tl.load(queries + row[:, None] * query_row + head[:, None] * query_head + d[None, :], mask=is_row, other=0.0)

    first_position = end - num_queries + tile * TILE // GROUP
    last_query = tl.minimum((tile * TILE + TILE - 1) // GROUP, num_queries - 1)
    first_key = 0
    if left >= 0:
        first_key = tl.maximum(first_position - left, 0)
    first_turn = first_key // KEYS
    num_turns = (end - num_queries + last_query) // KEYS + 1 - first_turn
    turns_each = (num_turns + num_splits - 1) // num_splits
    from_turn = first_turn + part * turns_each
    to_turn = tl.minimum(from_turn + turns_each, first_turn + num_turns)

    largest = tl.full([TILE], -float("inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    summed = tl.zeros([TILE, DIM], tl.float32)
    for turn in range(from_turn, to_turn):
        at = turn * KEYS + tl.arange(0, KEYS)
        is_there = at < end
        block = tl.load(table + sequence.to(tl.int64) * table_row + at // BLOCK, mask=is_there, other=0).to(tl.int64)
        where = block * key_block + (at % BLOCK) * key_row + kv_head * key_head
        is_key = is_there[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(keys + where[:, None] + d[None, :], mask=is_key, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if softcap > 0:
            score = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(score * (2.0 * 1.4426950408889634 / softcap))))  # tanh
        is_seen = is_there[None, :] & (at[None, :] <= position[:, None])
        if left >= 0:
            is_seen = is_seen & (at[None, :] >= position[:, None] - left)
        score = tl.where(is_seen, score * 1.4426950408889634, -float("inf"))  # of base 2 from here
        new_largest = tl.maximum(largest, tl.max(score, 1))
        base = tl.where(new_largest == -float("inf"), 0.0, new_largest)  # a row that has seen no key yet
        weight = tl.exp2(score - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(values + where[:, None] + d[None, :], mask=is_key, other=0.0)
        summed = summed * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        largest = new_largest

    if IS_SPLIT:
        slot = (row * (tl.num_programs(1) * GROUP) + head) * num_splits + part
        tl.store(part_sums + slot[:, None] * HEAD_DIM + d[None, :], summed, mask=is_row)
        tl.store(part_norms + slot * 2, largest, mask=pair < num_queries * GROUP)
        tl.store(part_norms + slot * 2 + 1, total, mask=pair < num_queries * GROUP)
    else:
        mean = summed / tl.where(total == 0.0, 1.0, total)[:, None]  # rows beyond the queries have seen nothing
        tl.store(out + row[:, None] * out_row + head[:, None] * out_head + d[None, :], mean.to(out.dtype.element_ty), mask=is_row)


@triton.jit(do_not_specialize=["num_splits"])
def merge_kernel(
    part_sums,
    part_norms,
    out,
    out_row,
    out_head,
    num_splits,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.arange(0, MOST_SPLITS)
    d = tl.arange(0, DIM)
    first = (row * tl.num_programs(1) + head) * num_splits
    is_part = part < num_splits
    largest = tl.load(part_norms + (first + part) * 2, mask=is_part, other=-float("inf"))
    total = tl.load(part_norms + (first + part) * 2 + 1, mask=is_part, other=0.0)
    share = tl.exp2(largest - tl.max(largest, 0))
    is_sum = is_part[:, None] & (d < HEAD_DIM)[None, :]
    summed = tl.load(part_sums + (first + part)[:, None] * HEAD_DIM + d[None, :], mask=is_sum, other=0.0)
    mean = tl.sum(summed * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(out + row * out_row + head * out_head + d, mean.to(out.dtype.element_ty), mask=d < HEAD_DIM)
