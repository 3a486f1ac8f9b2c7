"""What each layer of a model asks of its attention function: sizes, scaling, window, soft-cap. Seen while one token passes through.

Configs name these differently, or name what the family ignores; a call says what is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from polyhead.heads.model.family import HeadModule, TrunkModule, set_attention

_NOTES = "polyhead_notes"


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One layer's call of its attention function."""

    num_kv_heads: int
    group: int  # query heads of a key head
    head_dim: int  # of keys
    value_dim: int
    scaling: float | None
    window: int  # 0: all tokens
    softcap: float | None


def layer_calls(part: TrunkModule | HeadModule, d_model: int) -> list[LayerCall]:
    """Each layer's, in order. Runs one token through the part."""
    seen: dict[int, LayerCall] = {}
    device = next(part.parameters()).device
    before = part.decoder.config._attn_implementation
    set_attention(part, _NOTES)
    position = torch.zeros((1, 1), dtype=torch.long, device=device)
    with torch.inference_mode():
        if isinstance(part, TrunkModule):
            part(position, position, seen=seen)
        else:
            state = torch.zeros((1, 1, d_model), dtype=part.dtype, device=device)  # its output may have another dtype
            part.base(inputs_embeds=state, position_ids=position, use_cache=False, seen=seen)
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
    num_kv_heads, group = key.shape[1], query.shape[1] // key.shape[1]
    seen[layer] = LayerCall(num_kv_heads, group, key.shape[3], value.shape[3], scaling, sliding_window or 0, softcap)
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(_NOTES, _note_call)
