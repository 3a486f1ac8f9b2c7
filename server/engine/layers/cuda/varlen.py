"""Attention of a whole step in one call a layer: each sequence's new tokens over its own cached keys, prefill and decode alike.

torch's `varlen_attn` (FlashAttention, CUDA, 16 bits) computes it: over blocks gathered into one row of keys, or, where FlashAttention 3
could be activated, over the cache in place. It has no soft-cap; for that, and for float32, torch/attention.py serves.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor

from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.layers.cuda.upload import upload
from polyhead.server.engine.layers.plan import Segment, StepPlan

LARGEST_HEAD = 256  # numbers; FlashAttention's limit
NEEDED = ("scale", "window_size", "enable_gqa", "seqused_k")  # parameters that came after the function did


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """Whose rows a step's queries are and where their keys lie. int32 on the device, but `blocks`."""

    query_starts: Tensor  # (sequences + 1,)
    num_keys: Tensor  # (sequences,)
    most_queries: int
    most_keys: int
    table: Tensor | None = None  # (sequences, blocks): paged
    blocks: Tensor | None = None  # (all blocks,), int64: gathered one sequence after the other
    key_starts: Tensor | None = None  # (sequences + 1,): of the gathered blocks


@dataclass(frozen=True, slots=True)
class VarlenAttention:
    """By a kernel with the signature of `torch.nn.attention.varlen.varlen_attn`."""

    call: Callable[..., Tensor]
    is_paged: bool = False  # it follows a table of blocks

    def prepare(self, cache: KvCache, segments: list[Segment]) -> RaggedRows:
        """A row for each new token of the segments, in order."""
        block_size = cache.shape.block_size
        used = [segment.slots[: -(-segment.end // block_size)] for segment in segments]
        width = max(map(len, used), default=0)
        lengths = [segment.end - segment.start for segment in segments]
        queries, keys, starts, blocks = upload(
            (
                [0, *accumulate(lengths)],
                [segment.end for segment in segments],
                [] if self.is_paged else [0, *accumulate(len(slots) * block_size for slots in used)],
                [slot for slots in used for slot in (slots + [0] * (width - len(slots)) if self.is_paged else slots)],
            ),
            cache.shape.device,
        )
        most = max(lengths, default=0), max((segment.end for segment in segments), default=0)
        if self.is_paged:
            return RaggedRows(queries.int(), keys.int(), *most, table=blocks.view(-1, width).int() if width else None)
        return RaggedRows(queries.int(), keys.int(), *most, blocks=blocks, key_starts=starts.int())

    def attend(self, plan: StepPlan, layer: int, queries: Tensor, scale: float, window: int, softcap: float | None = None) -> Tensor:
        """As `AttentionBackend.attend`."""
        assert softcap is None, "no kernel was chosen for a family with a soft-cap"
        if not len(queries):
            return torch.empty_like(queries)
        rows: RaggedRows = plan.prepared
        kv = plan.cache.layers[layer]
        if rows.blocks is not None:
            kv = kv.index_select(0, rows.blocks).flatten(0, 1)
        keys, values = kv.unbind(-3)
        paged = {} if rows.table is None else {"block_table": rows.table}
        return self.call(
            queries,
            keys,
            values,
            rows.query_starts,
            rows.key_starts,
            rows.most_queries,
            rows.most_keys,
            scale=scale,
            window_size=(window - 1 if window else -1, 0),
            enable_gqa=queries.shape[1] != keys.shape[-2],
            seqused_k=rows.num_keys,
            **paged,
        )


def candidates(device: torch.device, dtype: torch.dtype, head_dim: int) -> Iterator[VarlenAttention]:
    """Kernels that may serve this device, the best first. Activates FlashAttention 3 where it is installed and the GPU is a Hopper."""
    is_served = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= LARGEST_HEAD
    if not is_served or torch.cuda.get_device_capability(device)[0] < 8:
        return
    try:
        from torch.nn.attention.varlen import varlen_attn  # of torch 2.10
    except ImportError:
        return
    parameters = inspect.signature(varlen_attn).parameters
    if not all(name in parameters for name in NEEDED):
        return
    call = cast(Callable[..., Tensor], varlen_attn)  # one tensor, as long as nothing else is asked for
    if "block_table" in parameters and _activate_paging(device):
        yield VarlenAttention(call, is_paged=True)
    yield VarlenAttention(call)


def _activate_paging(device: torch.device) -> bool:
    """Whether FlashAttention 3 is there now. Version 4 follows block tables on a later generation of GPUs: not tried."""
    if torch.cuda.get_device_capability(device)[0] != 9:
        return False
    with contextlib.suppress(Exception):  # its package is missing, or was built for another torch: gathered blocks serve
        torch.nn.attention.activate_flash_attention_impl("FA3")
        return True
    return False
