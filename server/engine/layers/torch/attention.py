"""Attention over blocks: the one place where transformers' layers meet our caches.

Registered with transformers' AttentionInterface under NAME. The plan of a step arrives as the keyword argument `plan`, through the
model call and never through a global. A semantic argument that this function does not know raises: ignoring one gives plausible
wrong numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from polyhead.heads.model.family import HeadModule, TrunkModule, set_attention
from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.layers.cuda.upload import upload
from polyhead.server.engine.layers.cuda.varlen import RaggedRows

if TYPE_CHECKING:
    from polyhead.server.engine.compiled.stack import Tables

NAME = "polyhead"
_NOTES = "polyhead_notes"
_FEW_TOKENS = 64  # of a prefill segment: so few take less time than copying their keys for every query head

# Passed along by some families' layers and without meaning for the numbers here.
_HARMLESS = frozenset(
    {"position_ids", "position_embeddings", "use_cache", "past_key_values", "is_causal", "output_attentions", "output_router_logits"}
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of one sequence's tokens in a step."""

    slots: list[int]  # of the blocks that hold its tokens, up to `end`
    start: int  # position of the first new token
    end: int  # one past the position of the last


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
class AttentionPlan:
    """Where a step's tokens are written and what they attend to. Made once a step, used by every layer."""

    cache: KvCache
    write_rows: Tensor  # (new keys,) rows of the cache where they go
    new_rows: Tensor | None  # (new keys,) rows of the batch where they stand; None: in all of them
    segments: list[Segment] = field(default_factory=list)
    decodes: list[DecodeGroup] = field(default_factory=list)
    prefills: list[tuple[int, Segment, Tensor]] = field(default_factory=list)  # first row of the batch, the segment, its slots (1, blocks)
    asked: AttentionPlan | None = None  # of the rows whose output is asked for, if those are not all: for a head's last layer
    taps: Tensor | None = None  # (cache rows, d_model), set by the trunk: takes the tap layer's states at `write_rows`
    tables: Tables | None = None  # the segments as compiled layers read them, made by the first that does
    ragged: RaggedRows | None = None  # all rows in one call: where the cache has a kernel for it, instead of decodes and prefills
    _masks: dict[tuple[int, int], Tensor | None] = field(default_factory=dict)
    _stacked: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def is_one_group(self) -> bool:
        """Whether all rows decode, in their order, with one padding."""
        return len(self.decodes) == 1 and not self.prefills

    def keep_tap(self, states_TD: Tensor) -> None:
        """Keep the states that enter the tap layer, if anybody asked for them."""
        if self.taps is not None:
            self.taps.index_copy_(0, self.write_rows, states_TD)

    def write(self, layer: int, kv: Tensor) -> None:
        """Store the step's new keys and values of a layer, (tokens, 2, kv_heads, head_dim)."""
        if self.new_rows is None:
            self.cache.write(layer, self.write_rows, kv)
        elif len(self.write_rows):
            self.cache.write(layer, self.write_rows, kv[self.new_rows])

    @classmethod
    def build(cls, cache: KvCache, segments: Iterable[Segment], new_from: Iterable[int]) -> AttentionPlan:
        """Plan a step. `new_from[i]`: position from which segment i's keys are new; earlier ones are cached and only queried."""
        segments, size = list(segments), cache.shape.block_size
        write_rows, new_rows, num_rows = _new_keys(segments, new_from, size)
        written, new = upload((write_rows, [] if len(new_rows) == num_rows else new_rows), cache.shape.device)
        plan = cls(cache, written, None if len(new_rows) == num_rows else new, segments=segments)
        if cache.shape.is_compiled:
            return plan
        if cache.shape.varlen is not None:
            plan.ragged = RaggedRows.build(cache.shape.varlen, segments, size, cache.shape.device)
            return plan
        decodes, row = [], 0
        for segment in segments:
            if segment.end - segment.start == 1:
                decodes.append((row, segment))
            else:
                table = torch.tensor([segment.slots[: -(-segment.end // size)]], device=cache.shape.device)
                plan.prefills.append((row, segment, table))
            row += segment.end - segment.start
        plan.decodes.extend(DecodeGroup.build(members, cache) for members in _by_length(decodes, size))
        return plan

    def prefill_mask(self, index: int, window: int) -> Tensor | None:
        """(new tokens, keys) of one prefill segment; None where plain causal masking says the same."""
        key = (index, window)
        if key not in self._masks:
            _, segment, _ = self.prefills[index]
            if segment.start == 0 and (not window or segment.end <= window):
                self._masks[key] = None
            else:
                device = self.write_rows.device
                queries = torch.arange(segment.start, segment.end, device=device)[:, None]
                keys = torch.arange(segment.end, device=device)
                mask = keys <= queries
                if window:
                    mask &= keys > queries - window
                self._masks[key] = mask
        return self._masks[key]

    def stacked_mask(self, index: int, window: int, group: int) -> Tensor:
        """(new tokens * group, keys), 0 or -inf: one prefill segment's, for the queries of `group` heads as rows."""
        key = (index, window)
        if key not in self._stacked:
            seen = self.prefill_mask(index, window)
            assert seen is not None, "a segment that follows cached tokens is not plainly causal"
            mask = torch.zeros(seen.shape, dtype=self.cache.shape.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._stacked[key] = mask.repeat_interleave(group, dim=0)
        return self._stacked[key]


def _new_keys(segments: list[Segment], new_from: Iterable[int], size: int) -> tuple[list[int], list[int], int]:
    """Rows of the cache for the step's new keys, the rows of the batch where they stand, and how many rows the batch has."""
    write_rows, new_rows, row = [], [], 0
    for segment, first_new in zip(segments, new_from, strict=True):
        for position in range(max(segment.start, first_new), segment.end):
            write_rows.append(segment.slots[position // size] * size + position % size)
            new_rows.append(row + position - segment.start)
        row += segment.end - segment.start
    return write_rows, new_rows, row


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


def block_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, head_dim)
    key: Tensor,  # (1, kv_heads, tokens, head_dim)
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Write the new keys and values, then attend over the blocks. Returns (1, tokens, heads, head_dim).

    A sliding window of W lets a token see itself and the W - 1 before it.
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if unknown or attention_mask is not None or dropout:
        raise NotImplementedError(f"attention argument not supported: {unknown or 'attention_mask or dropout'}")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    queries, keys, values = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (tokens, heads, head_dim)
    plan.write(layer, torch.stack((keys, values), dim=1))
    return attend(plan, layer, queries, scale, sliding_window or 0, softcap)[None], None


def attend(plan: AttentionPlan, layer: int, queries: Tensor, scale: float, window: int, softcap: float | None = None) -> Tensor:
    """Attend over the blocks, whose keys are written. `queries` and the result: (tokens, heads, head_dim)."""
    assert not plan.cache.shape.is_compiled, "this plan is for compiled layers"
    if plan.ragged is not None:
        assert softcap is None, "no kernel was chosen for a family with a soft-cap"
        return plan.ragged.attend(plan.cache, layer, queries, scale, window)
    if plan.is_one_group:
        return _decode(plan.cache, plan.decodes[0], layer, queries, scale, window, softcap)
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    for group in plan.decodes:
        out[group.rows] = _decode(plan.cache, group, layer, queries[group.rows], scale, window, softcap)
    for index, (row, segment, slots) in enumerate(plan.prefills):
        length = segment.end - segment.start
        cached_keys, cached_values = plan.cache.gather(layer, slots)
        part, keys, values = queries[row : row + length], cached_keys[:, :, : segment.end], cached_values[:, :, : segment.end]
        if segment.start and length <= _FEW_TOKENS and softcap is None:
            stacked = plan.stacked_mask(index, window, queries.shape[1] // keys.shape[1])
            out[row : row + length] = _attend_stacked(part, keys, values, stacked, scale)
        else:
            mask = plan.prefill_mask(index, window)
            out[row : row + length] = _attend(part.transpose(0, 1)[None], keys, values, mask, scale, softcap)[0].transpose(0, 1)
    return out


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


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a layer asks of its attention function."""

    num_kv_heads: int
    head_dim: int  # of keys
    value_dim: int
    scaling: float | None
    window: int  # 0: all tokens
    softcap: float | None


def layer_calls(part: TrunkModule | HeadModule, d_model: int) -> list[LayerCall]:
    """Each layer's, seen while one token passes through: configs name them differently, or name what the family ignores."""
    seen: dict[int, LayerCall] = {}
    device = next(part.parameters()).device
    before = part.decoder.config._attn_implementation
    set_attention(part, _NOTES)
    position = torch.zeros((1, 1), dtype=torch.long, device=device)
    with torch.inference_mode():
        if isinstance(part, TrunkModule):
            part(position, position, seen=seen)
        else:
            part(torch.zeros((1, 1, d_model), device=device), position, seen=seen)
    set_attention(part, before)
    return [seen[layer] for layer in sorted(seen)]


def _note_call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    seen: dict[int, LayerCall],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    seen[layer] = LayerCall(key.shape[1], key.shape[3], value.shape[3], scaling, sliding_window or 0, softcap)
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(NAME, block_attention)
AttentionInterface.register(_NOTES, _note_call)
