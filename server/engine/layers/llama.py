"""The weights and sizes of a layer of the llama-like families, taken out of transformers' modules for our own layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polyhead.heads.format.pauses import pause_point
from polyhead.heads.model.spec import ModelSpec
from polyhead.server.engine.layers.layer_calls import LayerCall

LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})

Weight = tuple[Tensor, Tensor | None]  # (out, in), and the bias (out,)
NormWeight = tuple[Tensor, float]  # of a root-mean-square norm, and its epsilon


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One layer: attention, then the gated feed-forward net. The rows of query and key weights are paired (`paired`)."""

    name: str  # in the whole model: "model.layers.27"
    index: int  # in its cache
    head_dim: int
    num_heads: int
    num_kv_heads: int
    scaling: float
    window: int  # 0: all tokens
    norm: NormWeight
    mlp_norm: NormWeight
    query_norm: NormWeight | None
    key_norm: NormWeight | None
    qkv: Weight  # query, key and value as one
    out: Weight
    gate: Weight
    up: Weight
    down: Weight

    @classmethod
    def of(cls, layer: Any, name: str, call: LayerCall) -> LayerParts:
        attn, mlp, head_dim = layer.self_attn, layer.mlp, call.head_dim
        num_heads, num_kv_heads = attn.q_proj.out_features // head_dim, attn.k_proj.out_features // head_dim
        return cls(
            name=name,
            index=int(attn.layer_idx),
            head_dim=head_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            scaling=call.scaling if call.scaling is not None else head_dim**-0.5,
            window=call.window,
            norm=norm_weight(layer.input_layernorm),
            mlp_norm=norm_weight(layer.post_attention_layernorm),
            query_norm=_paired_norm(attn, "q_norm", head_dim),
            key_norm=_paired_norm(attn, "k_norm", head_dim),
            qkv=_qkv(attn, num_heads, num_kv_heads, head_dim),
            out=_weights(attn.o_proj),
            gate=_weights(mlp.gate_proj),
            up=_weights(mlp.up_proj),
            down=_weights(mlp.down_proj),
        )


def is_known(base: Any, spec: ModelSpec, calls: list[LayerCall]) -> bool:
    """Whether these layers are of this one shape."""
    layers, weight = getattr(base, spec.layers), next(base.parameters())
    if any(call.softcap is not None or call.head_dim % 2 for call in calls):
        return False
    return weight.dtype in DTYPES and not unknown_parts(layers)


def unknown_parts(layers: Any) -> set[str]:
    """Class names of those modules' layers and activations that are not of this one shape; they need no weights."""
    if unknown := {type(layer).__name__ for layer in layers} - LAYERS:
        return unknown
    return {type(layer.mlp.act_fn).__name__ for layer in layers} - {"SiLU", "SiLUActivation"}


def rotations(base: Any, max_context: int) -> Tensor:
    """(max_context, head_dim / 2), complex: cos + i sin of each position and pair, from the family's own rotary embedding."""
    device = next(base.rotary_emb.buffers()).device
    cos, sin = base.rotary_emb(torch.zeros(1, 1, 1, device=device), torch.arange(max_context, device=device)[None])
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())


def take_layers(
    base: Any,
    spec: ModelSpec,
    calls: list[LayerCall],
    first: int,
    pack: Callable[[LayerParts], Any],
    device: torch.device | None = None,
) -> list[Any]:
    """Pack layer by layer, so that never more than one of them is in memory twice. The plain modules are emptied.

    `device`: where each layer is moved before it is packed; None: it is there.
    """
    taken = []
    for number, (layer, call) in enumerate(zip(getattr(base, spec.layers), calls, strict=True), start=first):
        if device is not None:
            layer.to(device)
        taken.append(pack(LayerParts.of(layer, f"{spec.base}.{spec.layers}.{number}", call)))
        layer.to_empty(device="meta")
        pause_point()
    return taken


def norm_weight(module: Any) -> NormWeight:
    """A copy: it may be a view of a whole head file, which would stay in memory with it."""
    return module.weight.detach().clone(), float(module.variance_epsilon)


def paired(rows: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """Rows i and i + head_dim / 2 of every head, which rotate together, side by side. With no heads, as they are."""
    if not num_heads:
        return rows
    return rows.reshape(num_heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(rows.shape)


def _paired_norm(attn: nn.Module, name: str, head_dim: int) -> NormWeight | None:
    module = getattr(attn, name, None)
    if module is None:
        return None
    weight, eps = norm_weight(module)
    return paired(weight[:, None], 1, head_dim)[:, 0].contiguous(), eps


def _weights(module: nn.Linear) -> Weight:
    return module.weight.detach(), None if module.bias is None else module.bias.detach().clone()


def _qkv(attn: Any, num_heads: int, num_kv_heads: int, head_dim: int) -> Weight:
    parts = [(*_weights(attn.q_proj), num_heads), (*_weights(attn.k_proj), num_kv_heads), (*_weights(attn.v_proj), 0)]
    weight = torch.cat([paired(weight, num, head_dim) for weight, _, num in parts])
    if all(bias is None for _, bias, _ in parts):
        return weight, None
    biases = [(weight.new_zeros(len(weight)) if bias is None else bias, num) for weight, bias, num in parts]
    return weight, torch.cat([paired(bias[:, None], num, head_dim)[:, 0] for bias, num in biases])
