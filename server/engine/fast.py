"""One hand-written layer for the llama-like families, beside transformers' own modules: packed, fused, and tested against them.

What it saves, layer by layer: query, key and value in one product; rotation in place, as one complex product (the rows of the query and key
weights are reordered once, so that the two numbers of a pair stand side by side); keys and values written as they stand; silu, product and
residual inside the matrix products; in a head's last layer, no query work for positions whose output nobody asks for.

`fast_trunk` and `fast_head` answer None for what they do not know, and the plain modules serve. Both take over the modules' weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, silu

from polyhead.heads.adapted import Adapter, AdapterRows
from polyhead.heads.family import HeadModule, TrunkModule
from polyhead.heads.manifest import OutputKind
from polyhead.heads.spec import ModelSpec
from polyhead.server.engine.attention import AttentionPlan, LayerCall, attend, layer_calls
from polyhead.server.engine.linears import Gated, Kit, Linear

LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square norm."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class FastLayer:
    """One layer: attention over the blocks, then the gated feed-forward net."""

    def __init__(self, layer: Any, name: str, call: LayerCall, kit: Kit) -> None:
        self.name = name  # in the whole model: "model.layers.27"
        attn, mlp, head_dim = layer.self_attn, layer.mlp, call.head_dim
        self.index = int(attn.layer_idx)
        self.head_dim = head_dim
        self.num_heads = attn.q_proj.out_features // head_dim
        self.num_kv_heads = attn.k_proj.out_features // head_dim
        self.scaling = call.scaling if call.scaling is not None else head_dim**-0.5
        self.window = call.window
        self.norm, self.mlp_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.query_norm = _paired_norm(attn, "q_norm", head_dim)
        self.key_norm = _paired_norm(attn, "k_norm", head_dim)
        self.qkv = _qkv(kit, attn, self.num_heads, self.num_kv_heads, head_dim)
        self.out, self.down = _linear(kit, attn.o_proj), _linear(kit, mlp.down_proj)
        self.by_rows = kit.by_rows
        self.gated: Gated = kit.gated(*_weights(mlp.gate_proj), *_weights(mlp.up_proj))

    @property
    def num_bytes(self) -> int:
        norms = [norm for norm in (self.norm, self.mlp_norm, self.query_norm, self.key_norm) if norm]
        linears: tuple[Linear | Gated, ...] = (self.qkv, self.out, self.gated, self.down)
        return sum(norm.weight.nbytes for norm in norms) + sum(each.num_bytes for each in linears)

    def forward(self, x_TD: Tensor, turns: Tensor, plan: AttentionPlan, rows: Tensor | None = None) -> Tensor:
        """(T, D) in, (T, D) out; with `rows`, only those rows out. `turns` (T, 1, head_dim / 2), complex: each position's rotation."""
        queries = self._queries(self.qkv(self.norm(x_TD)), turns, plan)
        if rows is not None:
            assert plan.asked is not None
            x_TD, queries, plan = x_TD[rows], queries[rows], plan.asked
        if not len(x_TD):
            return x_TD
        attended = attend(plan, self.index, queries, self.scaling, self.window)
        x_TD = self.out.add_to(attended.reshape(len(x_TD), -1), x_TD)
        return self.down.add_to(self.gated(self.mlp_norm(x_TD)), x_TD)

    def forward_adapted(self, x_TD: Tensor, turns: Tensor, plan: AttentionPlan, parts: Sequence[AdapterRows]) -> Tensor:
        """The same with adapters, each added to its own rows of every product; so nothing is fused behind a product."""
        normed = self.norm(x_TD)
        qkv = self.qkv(normed)
        keys = self.num_heads * self.head_dim
        values = keys + self.num_kv_heads * self.head_dim
        self._add(parts, "self_attn.q_proj", normed, qkv[:, :keys], self.num_heads)
        self._add(parts, "self_attn.k_proj", normed, qkv[:, keys:values], self.num_kv_heads)
        self._add(parts, "self_attn.v_proj", normed, qkv[:, values:])
        attended = attend(plan, self.index, self._queries(qkv, turns, plan), self.scaling, self.window).reshape(len(x_TD), -1)
        x_TD = x_TD + self._add(parts, "self_attn.o_proj", attended, self.out(attended))
        normed = self.mlp_norm(x_TD)
        gate, up = self.gated.parts(normed)
        inner = silu(self._add(parts, "mlp.gate_proj", normed, gate)) * self._add(parts, "mlp.up_proj", normed, up)
        return x_TD + self._add(parts, "mlp.down_proj", inner, self.down(inner))

    def _queries(self, qkv: Tensor, turns: Tensor, plan: AttentionPlan) -> Tensor:
        """Rotate queries and keys where they stand, write keys and values, and return the queries, (T, heads, head_dim)."""
        num_tokens, num_turned = len(qkv), self.num_heads + self.num_kv_heads
        qkv = qkv.view(num_tokens, num_turned + self.num_kv_heads, self.head_dim)
        queries, turned = qkv[:, : self.num_heads], qkv[:, :num_turned]
        if self.query_norm is not None and self.key_norm is not None:
            queries.copy_(self.query_norm(queries))
            keys = turned[:, self.num_heads :]
            keys.copy_(self.key_norm(keys))
        _turn(turned.view(num_tokens, num_turned, -1, 2), turns)
        plan.write(self.index, qkv[:, self.num_heads :].view(num_tokens, 2, self.num_kv_heads, self.head_dim))
        return queries

    def _add(self, parts: Sequence[AdapterRows], name: str, inputs: Tensor, outputs: Tensor, num_paired: int = 0) -> Tensor:
        for part in parts:
            if (pair := part.adapter.matrices.get(f"{self.name}.{name}")) is not None:
                product = self.by_rows(pair.product, inputs[part.rows])
                outputs[part.rows] += _paired(product.T, num_paired, self.head_dim).T
        return outputs


class FastTrunk:
    """ids -> boundary states, called as the TrunkModule that it is made from."""

    def __init__(self, trunk: TrunkModule, layers: list[FastLayer], turns: Tensor, kit: Kit) -> None:
        self.spec = trunk.spec
        self.embedding = trunk.embedding
        self.tied_output = kit.unpacked(self.embedding.detach()) if self.spec.tied else None  # a tied head's, and so held once
        self.layers = layers
        self.turns = {torch.float32: turns}  # (max_context, head_dim / 2), complex, by the dtype they are rounded to; heads share them
        self.tap_layer = 0  # what enters it is kept; 0: nothing

    @property
    def num_bytes(self) -> int:
        """Of its weights as served."""
        held = sum(layer.num_bytes for layer in self.layers) + (self.tied_output.num_bytes if self.tied_output else 0)
        return held + self.embedding.numel() * self.embedding.element_size()

    def turns_at(self, dtype: torch.dtype) -> Tensor:
        """The rotations with sines and cosines rounded to `dtype`, as the families' own modules round them."""
        if dtype not in self.turns:
            rounded = torch.view_as_real(self.turns[torch.float32]).to(dtype).float()
            self.turns[dtype] = torch.view_as_complex(rounded)
        return self.turns[dtype]

    def __call__(self, input_ids_1T: Tensor, position_ids_1T: Tensor, *, step: AttentionPlan) -> Tensor:
        """(1, T, d_model)."""
        x_TD = embedding(input_ids_1T[0], self.embedding)
        turns = self.turns_at(x_TD.dtype).index_select(0, position_ids_1T[0])[:, None]
        for index, layer in enumerate(self.layers):
            if index and index == self.tap_layer:
                step.keep_tap(x_TD)
            x_TD = layer.forward(x_TD, turns, step)
        return x_TD[None]


class FastHead:
    """Boundary states -> logits or scalars, called as the HeadModule that it is made from."""

    def __init__(self, head: HeadModule, layers: list[FastLayer], norm: Norm, trunk: FastTrunk, kit: Kit) -> None:
        self.spec, self.output, self.dtype = head.spec, head.output, head.dtype
        self.layers = layers
        self.norm = norm
        self._turns = trunk.turns_at(head.dtype)
        self._project, output_bytes = _projection(head, trunk, kit)
        self.num_bytes = sum(layer.num_bytes for layer in layers) + norm.weight.nbytes + output_bytes  # what nobody shares

    def __call__(
        self,
        states_1TD: Tensor,
        position_ids_1T: Tensor,
        rows: Tensor,
        *,
        step: AttentionPlan,
        parts: Sequence[AdapterRows] = (),
    ) -> Tensor:
        """(rows, vocab) logits or (rows,) scalars. `parts`: rows of T that adapters own."""
        turns = self._turns.index_select(0, position_ids_1T[0])[:, None]
        x_TD = states_1TD[0]
        if parts:
            for layer in self.layers:
                x_TD = layer.forward_adapted(x_TD, turns, step, parts)
            return self._project(self.norm(x_TD[rows]))
        for layer in self.layers[:-1]:
            x_TD = layer.forward(x_TD, turns, step)
        return self._project(self.norm(self.layers[-1].forward(x_TD, turns, step, rows if step.asked is not None else None)))


class FastHeadGroup:
    """One base and any adapters on it, run together, called as the HeadGroup of a plain base."""

    def __init__(self, base: FastHead) -> None:
        self._base = base

    def __call__(self, parts: Sequence[AdapterRows], *inputs: Tensor, step: AttentionPlan) -> Tensor:
        return self._base(*inputs, step=step, parts=parts)


class FastLoraHead:
    """The base with one adapter on every row, called as a head."""

    def __init__(self, base: FastHead, adapter: Adapter) -> None:
        self.spec, self.output, self.dtype = base.spec, base.output, base.dtype
        self._base = base
        self._parts = [AdapterRows(slice(None), adapter)]

    def __call__(self, *inputs: Tensor, step: AttentionPlan) -> Tensor:
        return self._base(*inputs, step=step, parts=self._parts)


def fast_trunk(trunk: TrunkModule, max_context: int, kit: Kit) -> FastTrunk | None:
    """The same trunk on fast layers, or None. The plain module's layers are emptied."""
    calls = layer_calls(trunk, trunk.spec.d_model)
    if not is_known(trunk.decoder, trunk.spec, calls):
        return None
    return FastTrunk(trunk, take_layers(trunk.decoder, trunk.spec, calls, 0, kit), rotations(trunk.decoder, max_context), kit)


def fast_head(head: HeadModule, trunk: FastTrunk, kit: Kit, between: Callable[[], None] = lambda: None) -> FastHead | None:
    """The same head on fast layers, or None. The plain module's layers are emptied; `between` layers is called."""
    base = head.decoder if head.score is not None else getattr(head.decoder, head.spec.base)
    calls = layer_calls(head, head.spec.d_model)
    if not is_known(base, head.spec, calls):
        return None
    layers = take_layers(base, head.spec, calls, head.spec.split_layer, kit, between)
    return FastHead(head, layers, _norm(getattr(base, head.spec.norm)), trunk, kit)


def is_known(base: Any, spec: ModelSpec, calls: list[LayerCall]) -> bool:
    """Whether these layers are of the one shape that FastLayer computes."""
    layers, weight = getattr(base, spec.layers), next(base.parameters())
    if any(call.softcap is not None or call.head_dim % 2 for call in calls):
        return False
    if weight.dtype not in DTYPES or {type(layer).__name__ for layer in layers} - LAYERS:
        return False
    acts = {type(layer.mlp.act_fn).__name__ for layer in layers}
    return acts <= {"SiLU", "SiLUActivation"}


def take_layers(
    base: Any, spec: ModelSpec, calls: list[LayerCall], first: int, kit: Kit, between: Callable[[], None] = lambda: None
) -> list[FastLayer]:
    """Pack layer by layer, so that never more than one of them is in memory twice."""
    taken = []
    for number, (layer, call) in enumerate(zip(getattr(base, spec.layers), calls, strict=True), start=first):
        taken.append(FastLayer(layer, f"{spec.base}.{spec.layers}.{number}", call, kit))
        layer.to_empty(device="meta")
        between()
    return taken


def rotations(base: Any, max_context: int) -> Tensor:
    """(max_context, head_dim / 2), complex: cos + i sin of each position and pair, from the family's own rotary embedding."""
    device = next(base.rotary_emb.buffers()).device
    cos, sin = base.rotary_emb(torch.zeros(1, 1, 1, device=device), torch.arange(max_context, device=device)[None])
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())


def _turn(pairs: Tensor, turns: Tensor) -> None:
    """Rotate (T, heads, head_dim / 2, 2) in place, in float32 whatever the dtype."""
    if pairs.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(turns)))


def _norm(module: Any) -> Norm:
    """Its weight is copied: it may be a view of a whole head file, which would stay in memory with it."""
    return Norm(module.weight.detach().clone(), float(module.variance_epsilon))


def _paired_norm(attn: nn.Module, name: str, head_dim: int) -> Norm | None:
    module = getattr(attn, name, None)
    if module is None:
        return None
    norm = _norm(module)
    return Norm(_paired(norm.weight[:, None], 1, head_dim)[:, 0], norm.eps)


def _weights(module: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return module.weight.detach(), None if module.bias is None else module.bias.detach().clone()


def _linear(kit: Kit, module: nn.Linear) -> Linear:
    return kit.linear(*_weights(module))


def _qkv(kit: Kit, attn: Any, num_heads: int, num_kv_heads: int, head_dim: int) -> Linear:
    """Query, key and value as one product; the rows of the first two are reordered for the rotation."""
    parts = [(*_weights(attn.q_proj), num_heads), (*_weights(attn.k_proj), num_kv_heads), (*_weights(attn.v_proj), 0)]
    weight = torch.cat([_paired(weight, num, head_dim) for weight, _, num in parts])
    if all(bias is None for _, bias, _ in parts):
        return kit.linear(weight, None)
    biases = [(weight.new_zeros(len(weight)) if bias is None else bias, num) for weight, bias, num in parts]
    return kit.linear(weight, torch.cat([_paired(bias[:, None], num, head_dim)[:, 0] for bias, num in biases]))


def _paired(rows: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """Rows i and i + head_dim / 2 of every head, which rotate together, side by side."""
    if not num_heads:
        return rows
    return rows.reshape(num_heads, 2, head_dim // 2, -1).transpose(1, 2).reshape(rows.shape)


def _projection(head: HeadModule, trunk: FastTrunk, kit: Kit) -> tuple[Callable[[Tensor], Tensor], int]:
    """(rows, d_model) -> (rows, vocab) or (rows,), and the bytes it takes: a tied output is the trunk's own."""
    if head.score is not None:
        score = head.score.weight.detach().clone()
        return lambda x_RD: kit.by_rows(lambda rows: linear(rows, score), x_RD)[:, 0], score.nbytes
    if head.output is OutputKind.TIED:
        assert trunk.tied_output is not None
        return trunk.tied_output, 0
    own = kit.linear(head.decoder.get_output_embeddings().weight.detach(), None)
    return own, own.num_bytes
