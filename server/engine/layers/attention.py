"""Where transformers' own layers meet our caches: an attention function, registered with AttentionInterface under NAME.

A semantic argument that this function does not know raises: ignoring one would give plausible wrong numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from polyhead.server.engine.layers.plan import StepPlan

NAME = "polyhead"

# Passed along by some families' layers and without meaning for the numbers here.
_HARMLESS = frozenset(
    {"position_ids", "position_embeddings", "use_cache", "past_key_values", "is_causal", "output_attentions", "output_router_logits"}
)


def block_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, head_dim)
    key: Tensor,  # (1, kv_heads, tokens, head_dim)
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: StepPlan,
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
    return plan.attention.attend(plan, layer, queries, scale, sliding_window or 0, softcap)[None], None


AttentionInterface.register(NAME, block_attention)
