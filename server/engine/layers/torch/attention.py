"""Attention over blocks in torch's own calls, on any device: decoding rows in groups of similar length, prefills one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.layers.plan import Segment, StepPlan

_FEW_TOKENS = 64  # of a prefill segment: so few take less time than copying their keys for every query head


@dataclass(slots=True)
class DecodeGroup:
    """Tokens of the step that see similar numbers of keys: padded to their own longest and not to the batch's."""

    rows: Tensor  # (tokens,) rows of the batch
    slots: Tensor  # (tokens, blocks), padded with slot 0
    ends: Tensor  # (tokens, 1) keys that each attends to
    block_size: int
    dtype: torch.dtype  # of keys and queries
    _masks: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def build(cls, members: list[tuple[int, Segment]], cache: KvCache) -> DecodeGroup:
        """One token of each sequence. Keys are padded to the longest."""
        block_size, device, dtype = cache.shape.block_size, cache.shape.device, cache.shape.dtype
        counts = [-(-segment.end // block_size) for _, segment in members]
        width = max(counts)
        table = [segment.slots[:count] + [0] * (width - count) for (_, segment), count in zip(members, counts, strict=True)]
        return cls(
            rows=torch.tensor([row for row, _ in members], device=device),
            slots=torch.tensor(table, device=device),
            ends=torch.tensor([[segment.end] for _, segment in members], device=device),
            block_size=block_size,
            dtype=dtype,
        )

    def mask(self, window: int) -> Tensor:
        """(tokens, 1, 1, keys): 0 for keys that a token sees, -inf for others. `window` 0 means all."""
        if window not in self._masks:
            positions = torch.arange(self.slots.shape[1] * self.block_size, device=self.ends.device)
            mask = positions < self.ends
            if window:
                mask &= positions >= self.ends - window
            hidden = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
            self._masks[window] = hidden[:, None, None, :]
        return self._masks[window]


@dataclass(slots=True)
class Prefill:
    """Several tokens of one sequence."""

    row: int  # of the batch, its first
    segment: Segment
    slots: Tensor  # (1, blocks)
    dtype: torch.dtype  # of keys and queries
    _masks: dict[int, Tensor | None] = field(default_factory=dict)
    _stacked: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, window: int) -> Tensor | None:
        """(new tokens, keys); None where plain causal masking says the same."""
        if window not in self._masks:
            segment = self.segment
            if segment.start == 0 and (not window or segment.end <= window):
                self._masks[window] = None
            else:
                device = self.slots.device
                queries = torch.arange(segment.start, segment.end, device=device)[:, None]
                keys = torch.arange(segment.end, device=device)
                mask = keys <= queries
                if window:
                    mask &= keys > queries - window
                self._masks[window] = mask
        return self._masks[window]

    def stacked_mask(self, window: int, group: int) -> Tensor:
        """(new tokens * group, keys), 0 or -inf: for the queries of `group` heads as rows."""
        if window not in self._stacked:
            seen = self.mask(window)
            assert seen is not None, "a segment that follows cached tokens is not plainly causal"
            mask = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._stacked[window] = mask.repeat_interleave(group, dim=0)
        return self._stacked[window]


@dataclass(frozen=True, slots=True)
class Split:
    """A step's rows: those that decode, and prefills."""

    decodes: list[DecodeGroup]
    prefills: list[Prefill]
    is_one_group: bool  # all rows decode, in their order, with one padding


class TorchAttention:
    """By `scaled_dot_product_attention`, and by hand for a soft-cap."""

    name = "torch"
    reads_past_ends = True

    def prepare(self, cache: KvCache, segments: list[Segment]) -> Split:
        shape = cache.shape
        single, prefills, row = [], [], 0
        for segment in segments:
            if segment.end - segment.start == 1:
                single.append((row, segment))
            else:
                table = torch.tensor([segment.slots[: -(-segment.end // shape.block_size)]], device=shape.device)
                prefills.append(Prefill(row, segment, table, shape.dtype))
            row += segment.end - segment.start
        decodes = [DecodeGroup.build(members, cache) for members in _by_length(single, shape.block_size)]
        return Split(decodes, prefills, len(decodes) == 1 and not prefills)

    def attend(self, plan: StepPlan, layer: int, queries: Tensor, scale: float, window: int, softcap: float | None = None) -> Tensor:
        """As `AttentionBackend.attend`."""
        split: Split = plan.prepared
        if split.is_one_group:
            return _decode(plan.cache, split.decodes[0], layer, queries, scale, window, softcap)
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        for group in split.decodes:
            out[group.rows] = _decode(plan.cache, group, layer, queries[group.rows], scale, window, softcap)
        for prefill in split.prefills:
            row, segment = prefill.row, prefill.segment
            length = segment.end - segment.start
            cached_keys, cached_values = plan.cache.gather(layer, prefill.slots)
            part, keys, values = queries[row : row + length], cached_keys[:, :, : segment.end], cached_values[:, :, : segment.end]
            if segment.start and length <= _FEW_TOKENS and softcap is None:
                stacked = prefill.stacked_mask(window, queries.shape[1] // keys.shape[1])
                out[row : row + length] = _attend_stacked(part, keys, values, stacked, scale)
            else:
                mask = prefill.mask(window)
                out[row : row + length] = _attend(part.transpose(0, 1)[None], keys, values, mask, scale, softcap)[0].transpose(0, 1)
        return out


def _by_length(decodes: list[tuple[int, Segment]], block_size: int) -> list[list[tuple[int, Segment]]]:
    """Groups in which nobody needs more than twice the blocks of the shortest: padding 31 short ones to one long one cost 50 times."""
    counts = [-(-segment.end // block_size) for _, segment in decodes]
    if decodes and max(counts) <= 2 * min(counts):
        return [decodes]
    groups: list[list[tuple[int, Segment]]] = []
    for row, segment in sorted(decodes, key=lambda each: each[1].end):
        if not groups or -(-segment.end // block_size) > 2 * -(-groups[-1][0][1].end // block_size):
            groups.append([])
        groups[-1].append((row, segment))
    return groups


def _decode(
    cache: KvCache, group: DecodeGroup, layer: int, queries: Tensor, scale: float, window: int, softcap: float | None
) -> Tensor:
    """Token by token: the query heads that share a key head stand as rows of one small matrix."""
    num_tokens, num_heads, head_dim = queries.shape
    keys, values = (each.expand(num_tokens, -1, -1, -1) for each in cache.gather(layer, group.slots))
    num_kv_heads = keys.shape[1]
    grouped = queries.view(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    mask = group.mask(window)
    if softcap is None:
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    else:
        out = _capped(grouped, keys, values, mask, scale, softcap)
    return out.reshape(num_tokens, num_heads, head_dim)


def _attend_stacked(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The queries of all heads that share a key head are rows of one matrix. (tokens, heads, head_dim) in and out."""
    num_tokens, num_heads, head_dim = queries.shape
    num_kv_heads = keys.shape[1]
    rows = queries.view(num_tokens, num_kv_heads, -1, head_dim).transpose(0, 1).reshape(1, num_kv_heads, -1, head_dim)
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
    return out.view(num_kv_heads, num_tokens, -1, head_dim).transpose(0, 1).reshape(num_tokens, num_heads, head_dim)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    if softcap is not None:
        if mask is None:
            mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=queries.device).tril()
        return _capped(queries, keys, values, mask, scale, softcap)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale)


def _capped(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Attention with scores squeezed into (-softcap, softcap), as gemma2 does, softmax in float32. `mask`: booleans, or 0 and -inf."""
    scores = torch.tanh(queries @ keys.transpose(2, 3) * scale / softcap) * softcap
    masked = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = masked.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)
    return weights @ values
