"""Our own attention on CUDA: launches the kernels of paged_kernels.py, with the arguments of `torch.nn.attention.varlen.varlen_attn`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

LARGEST_HEAD = 256  # numbers
MOST_SPLITS = 32  # of a sequence's keys
FEWEST_KEYS = 128  # of one split: fewer cost more in adding up than they save
PROGRAMS_EACH = 2  # that a multiprocessor should have


@dataclass(frozen=True, slots=True)
class Launch:
    """How many programs a step's attention is, and of what size. Compiled once for each (tile, keys, is_split)."""

    tile: int  # pairs of a query and a head, of one program
    num_tiles: int  # of the longest sequence
    keys: int  # read at a time
    num_splits: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(
        cls, num_sequences: int, most_queries: int, most_keys: int, num_kv_heads: int, group: int, head_dim: int, num_processors: int
    ) -> Launch:
        """Small tiles and split keys where a tile holds each sequence's queries; else large tiles, which share what they read of keys."""
        small = power_of_two(group)
        keys = 64 if power_of_two(head_dim) <= 128 else 32  # that fit into shared memory, twice
        if most_queries * group > small:
            return cls(64, -(-most_queries * group // 64), keys, 1, 4, 2)
        num_programs, splits = num_sequences * num_kv_heads, 1
        while splits < MOST_SPLITS and num_programs * splits < PROGRAMS_EACH * num_processors and most_keys >= 2 * splits * FEWEST_KEYS:
            splits *= 2
        return cls(small, 1, keys, splits, 4, 3)


def paged_attention(
    query: Tensor,  # (tokens, heads, head_dim)
    key: Tensor,  # (blocks, tokens of a block, key heads, head_dim), with the strides of `value`
    value: Tensor,
    query_starts: Tensor,  # (sequences + 1,), int32
    _key_starts: None,
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,  # (sequences,), int32
    block_table: Tensor,  # (sequences, blocks), int32
    softcap: float = 0.0,
) -> Tensor:
    """(tokens, heads, head_dim) of causal attention: a sequence's queries are its last tokens. Two launches at most, and no wait."""
    from polyhead.server.engine.layers.cuda.paged_kernels import attend_kernel, merge_kernel  # triton comes with torch's CUDA builds alone

    num_tokens, num_heads, head_dim = query.shape
    _, block, num_kv_heads, _ = key.shape
    assert key.stride() == value.stride()
    assert query.stride(-1) == key.stride(-1) == block_table.stride(-1) == 1
    group, num_sequences = num_heads // num_kv_heads, len(seqused_k)
    launch = Launch.of(num_sequences, most_queries, most_keys, num_kv_heads, group, head_dim, num_processors(query.device))
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=query.dtype, device=query.device)
    sums = norms = out  # not read, unless split
    if launch.num_splits > 1:
        sums = torch.empty((num_tokens, num_heads, launch.num_splits, head_dim), dtype=torch.float32, device=query.device)
        norms = torch.empty((num_tokens, num_heads, launch.num_splits, 2), dtype=torch.float32, device=query.device)
    attend_kernel[(launch.num_tiles, num_kv_heads, num_sequences * launch.num_splits)](
        query, key, value, block_table, query_starts, seqused_k, out, sums, norms,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), key.stride(2), block_table.stride(0), out.stride(0), out.stride(1),
        float(scale), float(softcap), window_size[0], launch.num_splits,
        GROUP=group, HEAD_DIM=head_dim, DIM=power_of_two(head_dim), BLOCK=block, TILE=launch.tile, KEYS=launch.keys,
        IS_SPLIT=launch.num_splits > 1, num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    if launch.num_splits > 1:
        merge_kernel[(num_tokens, num_heads)](
            sums, norms, out, out.stride(0), out.stride(1), launch.num_splits,
            HEAD_DIM=head_dim, DIM=power_of_two(head_dim), MOST_SPLITS=MOST_SPLITS, num_warps=4,
        )  # fmt: skip
    return out


def power_of_two(number: int) -> int:
    """The next one that a product takes: 16 at least."""
    return max(16, 1 << (number - 1).bit_length())


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 elsewhere, where Triton's interpreter runs the kernels."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
