"""Attention of a whole step in one call a layer: each sequence's new tokens over its own cached keys, prefill and decode alike.

Kernels (CUDA, 16 bits) that may compute it, the best first:

    torch varlen, FlashAttention 3   over the cache in place, where its package could be activated
    triton paged                     our own (paged.py), over the cache in place
    torch varlen                     over blocks gathered into one row of keys; from torch 2.13
    torch flash                      the operator beneath it, which older releases have, too

Only our own knows a soft-cap. For float32, and where none works, torch/attention.py serves. It takes over as well, with a line of the log,
when a kernel fails later, in traffic: it is compiled for each kind of step, and not all kinds are tried at start.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import accumulate, pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor

from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.layers.cuda import paged
from polyhead.server.engine.layers.cuda.threads import is_recording
from polyhead.server.engine.layers.cuda.upload import upload
from polyhead.server.engine.layers.plan import AttentionBackend, Segment, StepPlan

Steps = Literal["decode steps", "prefills"]  # a kernel's programs for one are not those for the other
LARGEST_HEAD = 256  # numbers; FlashAttention's limit
NEEDED = ("scale", "window_size", "enable_gqa", "seqused_k")  # parameters that came after the function did


logger = logging.getLogger(__name__)


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
    name: str = "torch varlen"
    has_softcap: bool = False  # it takes one, as `softcap`
    reads_past_ends: bool = True  # of sequences, within their last block, where it multiplies what it finds by 0
    fallback: AttentionBackend | None = field(default=None, compare=False)  # None: its errors are the caller's
    failed: set[Steps] = field(default_factory=set, compare=False)  # kinds of steps that the fallback computes from now on

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
        assert softcap is None or self.has_softcap, "a kernel without a soft-cap was chosen for a family that has one"
        if not len(queries):
            return torch.empty_like(queries)
        rows: RaggedRows = plan.prepared
        if self.fallback is None:
            return self._launched(plan, rows, layer, queries, scale, window, softcap)
        steps: Steps = "decode steps" if rows.most_queries == 1 else "prefills"
        if steps not in self.failed:
            try:
                return self._launched(plan, rows, layer, queries, scale, window, softcap)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of Triton's compiler or launcher, or of torch: not one class
                if is_recording():
                    raise  # the kernel has just run in the trial: it is the recording that fails, and graphs.py gives that up
                self.failed.add(steps)
                logger.warning("%s by %s are not used: %s", steps, self.name, (str(error) or repr(error)).splitlines()[0])
        if plan.instead is None:
            plan.cache.hold_numbers_only()
            plan.instead = _planned_by(self.fallback, plan, rows)
        return self.fallback.attend(plan.instead, layer, queries, scale, window, softcap)

    def _launched(
        self, plan: StepPlan, rows: RaggedRows, layer: int, queries: Tensor, scale: float, window: int, softcap: float | None
    ) -> Tensor:
        kv = plan.cache.layers[layer]
        if rows.blocks is not None:
            kv = kv.index_select(0, rows.blocks).flatten(0, 1)
        keys, values = kv.unbind(-3)
        options: dict[str, Any] = {} if rows.table is None else {"block_table": rows.table}
        if softcap is not None:
            options["softcap"] = softcap
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
            **options,
        )


def _planned_by(backend: AttentionBackend, plan: StepPlan, rows: RaggedRows) -> StepPlan:
    """The plan for another back end. Waits for the device."""
    starts, ends, block_size = rows.query_starts.tolist(), rows.num_keys.tolist(), plan.cache.shape.block_size
    if rows.table is not None:
        tables = rows.table.tolist()
    else:
        assert rows.blocks is not None
        assert rows.key_starts is not None
        first = [start // block_size for start in rows.key_starts.tolist()]
        blocks = rows.blocks.tolist()
        tables = [blocks[start:end] for start, end in pairwise(first)]
    segments = [
        Segment(table[: -(-end // block_size)], end - (after - before), end)
        for table, end, (before, after) in zip(tables, ends, pairwise(starts), strict=True)
    ]
    return replace(plan, attention=backend, prepared=backend.prepare(plan.cache, segments), asked=None)


def candidates(device: torch.device, dtype: torch.dtype, head_dim: int) -> Iterator[VarlenAttention]:
    """Kernels that may serve this device, the best first. Activates FlashAttention 3 where it is installed and the GPU is a Hopper."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or torch.cuda.get_device_capability(device)[0] < 8:
        return
    is_flash_size = head_dim % 8 == 0 and head_dim <= LARGEST_HEAD
    torch_own = _torch_varlen() if is_flash_size else None
    if torch_own is not None and "block_table" in inspect.signature(torch_own).parameters and _activate_paging(device):
        yield VarlenAttention(torch_own, is_paged=True, name="torch varlen, FlashAttention 3")
    if find_spec("triton") and head_dim <= paged.LARGEST_HEAD:
        yield VarlenAttention(paged.paged_attention, is_paged=True, name="triton paged", has_softcap=True, reads_past_ends=False)
    if torch_own is not None:
        yield VarlenAttention(torch_own)
    if is_flash_size:
        yield VarlenAttention(_flash, name="torch flash")


def _torch_varlen() -> Callable[..., Tensor] | None:
    """torch's own, where it takes all that a step needs."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # of torch 2.10
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    is_complete = all(name in parameters for name in NEEDED)
    return cast(Callable[..., Tensor], varlen_attn) if is_complete else None  # one tensor, as long as nothing else is asked for


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
) -> Tensor:
    """torch's FlashAttention 2 operator, which shares key heads by itself."""
    left, right = window_size
    if most_queries == 1 and left < 0:
        right = -1  # one query sees all its keys: told so, the kernel packs a group's heads and splits long texts
    is_causal = left < 0 and right == 0
    result = torch.ops.aten._flash_attention_forward(
        query, key, value, query_starts, key_starts, most_queries, most_keys, 0.0, is_causal, False,
        scale=scale, window_size_left=left, window_size_right=right, seqused_k=seqused_k,
    )  # fmt: skip
    return cast(Tensor, result[0])


def _activate_paging(device: torch.device) -> bool:
    """Whether FlashAttention 3 is there now. Version 4 follows block tables on a later generation of GPUs: not tried."""
    if torch.cuda.get_device_capability(device)[0] != 9:
        return False
    with contextlib.suppress(Exception):  # its package is missing, or was built for another torch: gathered blocks serve
        torch.nn.attention.activate_flash_attention_impl("FA3")
        return True
    return False
