"""`torch.nn.attention.varlen.varlen_attn` in plain torch, for machines without its kernel: the same arguments, the same complaints."""

from __future__ import annotations

import torch
from torch import Tensor


def varlen_reference(
    query: Tensor,  # (queries, heads, head_dim)
    key: Tensor,  # (keys, kv_heads, head_dim), or (pages, page, kv_heads, head_dim) with a block table
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor | None = None,
    softcap: float = 0.0,  # which only our own kernel takes
) -> Tensor:
    num_sequences, num_heads, num_kv_heads = len(seqused_k), query.shape[1], key.shape[-2]
    for numbers in (cu_seq_q, seqused_k, *(each for each in (cu_seq_k, block_table) if each is not None)):
        assert numbers.dtype == torch.int32
        assert numbers.is_contiguous()
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert len(cu_seq_q) == num_sequences + 1
    assert int(cu_seq_q[-1]) == len(query)
    assert (cu_seq_k is None) != (block_table is None)
    assert enable_gqa or num_heads == num_kv_heads
    assert window_size[1] == 0
    out = torch.empty(query.shape, dtype=query.dtype)
    for index in range(num_sequences):
        first, last, used = int(cu_seq_q[index]), int(cu_seq_q[index + 1]), int(seqused_k[index])
        assert last - first <= max_q
        assert last - first <= used <= max_k
        if block_table is not None:
            keys, values = (pages[block_table[index].long()].flatten(0, 1)[:used] for pages in (key, value))
        else:
            assert cu_seq_k is not None
            start = int(cu_seq_k[index])
            assert start + used <= int(cu_seq_k[index + 1]) <= len(key)
            keys, values = key[start : start + used], value[start : start + used]
        keys, values = (each.float().repeat_interleave(num_heads // num_kv_heads, dim=1) for each in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[first:last].float(), keys)
        scores = softcap * torch.tanh(scores * scale / softcap) if softcap else scores * scale
        behind = torch.arange(used - (last - first), used)[:, None] - torch.arange(used)  # how far a key lies behind a query
        seen = behind >= 0 if window_size[0] < 0 else (behind >= 0) & (behind <= window_size[0])
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out[first:last] = torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)
    return out
