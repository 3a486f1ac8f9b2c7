"""The layers of a trunk or a head in torch's own calls: for GPUs and for 16 bits. On the CPU in float32 and int8, compiled/ runs them.

It does less than transformers' modules: query, key and value in one product; rotation in place, as one complex product (the two numbers
of a pair lie side by side); keys and values written without a copy; in a head's last layer, no query work for positions whose
output is not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from polyhead.heads.model.adapted import AdapterRows
from polyhead.server.engine.layers.cuda.fused import Fused
from polyhead.server.engine.layers.cuda.plain_rows import HeadNorms, Turning
from polyhead.server.engine.layers.linears import Gated, Linear, Linears
from polyhead.server.engine.layers.llama import LayerParts, NormWeight, paired
from polyhead.server.engine.layers.plan import StepPlan


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square norm."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class TorchLayer:
    """One layer: attention over the blocks, then the gated feed-forward net."""

    def __init__(self, parts: LayerParts, linears: Linears, fused: Fused | None = None) -> None:
        self.name, self.index, self.head_dim = parts.name, parts.index, parts.head_dim
        self.num_heads, self.num_kv_heads = parts.num_heads, parts.num_kv_heads
        self.scaling, self.window = parts.scaling, parts.window
        self.norm, self.mlp_norm = Norm(*parts.norm), Norm(*parts.mlp_norm)
        self.query_norm, self.key_norm = _optional_norm(parts.query_norm), _optional_norm(parts.key_norm)
        self.qkv, self.out, self.down = (linears.linear(*each) for each in (parts.qkv, parts.out, parts.down))
        self.gated: Gated = linears.gated(*parts.gate, *parts.up)
        self._fused = fused  # kernels of a GPU for what stands between products
        self._head_norms = HeadNorms(parts.query_norm, parts.key_norm) if parts.query_norm and parts.key_norm else None

    @property
    def num_bytes(self) -> int:
        norms = [norm for norm in (self.norm, self.mlp_norm, self.query_norm, self.key_norm) if norm]
        linears: tuple[Linear | Gated, ...] = (self.qkv, self.out, self.gated, self.down)
        return sum(norm.weight.nbytes for norm in norms) + sum(each.num_bytes for each in linears)

    def forward(self, x_TD: Tensor, rotations: Tensor, plan: StepPlan, rows: Tensor | None = None) -> Tensor:
        """(T, D) in, (T, D) out; with `rows`, only those rows out. `rotations` (T, 1, head_dim / 2), complex: each position's rotation."""
        queries = self._queries(self.qkv(self.norm(x_TD)), rotations, plan)
        if rows is not None:
            assert plan.asked is not None
            x_TD, queries, plan = x_TD[rows], queries[rows], plan.asked
        if not len(x_TD):
            return x_TD
        attended = plan.attention.attend(plan, self.index, queries, self.scaling, self.window)
        attended = attended.reshape(len(x_TD), -1)
        if self._fused is not None and not self.out.adds_for_free:
            normed = self._fused.add_norm(x_TD, self.out(attended), self.mlp_norm.weight, self.mlp_norm.eps)
        else:
            x_TD = self.out.add_to(attended, x_TD)
            normed = self.mlp_norm(x_TD)
        return self.down.add_to(self.gated(normed), x_TD)

    def forward_adapted(self, x_TD: Tensor, rotations: Tensor, plan: StepPlan, parts: Sequence[AdapterRows]) -> Tensor:
        """The same with adapters, each added to its own rows of every product; so nothing is fused behind a product."""
        normed = self.norm(x_TD)
        qkv = self.qkv(normed)
        keys = self.num_heads * self.head_dim
        values = keys + self.num_kv_heads * self.head_dim
        self._add(parts, "self_attn.q_proj", normed, qkv[:, :keys], self.num_heads)
        self._add(parts, "self_attn.k_proj", normed, qkv[:, keys:values], self.num_kv_heads)
        self._add(parts, "self_attn.v_proj", normed, qkv[:, values:])
        queries = self._queries(qkv, rotations, plan)
        attended = plan.attention.attend(plan, self.index, queries, self.scaling, self.window).reshape(len(x_TD), -1)
        x_TD = x_TD + self._add(parts, "self_attn.o_proj", attended, self.out(attended))
        normed = self.mlp_norm(x_TD)
        gate, up = self.gated.parts(normed)
        inner = silu(self._add(parts, "mlp.gate_proj", normed, gate)) * self._add(parts, "mlp.up_proj", normed, up)
        return x_TD + self._add(parts, "mlp.down_proj", inner, self.down(inner))

    def _queries(self, qkv: Tensor, rotations: Tensor, plan: StepPlan) -> Tensor:
        """Rotate queries and keys where they stand, write keys and values, and return the queries, (T, heads, head_dim)."""
        num_tokens, num_turned = len(qkv), self.num_heads + self.num_kv_heads
        if self._fused is not None and plan.new_rows is None and num_tokens:
            cache_rows = plan.cache.rows(self.index)
            self._fused.turn(qkv, Turning(rotations[:, 0], plan.write_rows, cache_rows, self.num_heads, self._head_norms))
            return qkv.view(num_tokens, -1, self.head_dim)[:, : self.num_heads]
        qkv = qkv.view(num_tokens, num_turned + self.num_kv_heads, self.head_dim)
        queries, turned = qkv[:, : self.num_heads], qkv[:, :num_turned]
        if self.query_norm is not None and self.key_norm is not None:
            queries.copy_(self.query_norm(queries))
            keys = turned[:, self.num_heads :]
            keys.copy_(self.key_norm(keys))
        _turn(turned.view(num_tokens, num_turned, -1, 2), rotations)
        plan.write(self.index, qkv[:, self.num_heads :].view(num_tokens, 2, self.num_kv_heads, self.head_dim))
        return queries

    def _add(self, parts: Sequence[AdapterRows], name: str, inputs: Tensor, outputs: Tensor, num_paired: int = 0) -> Tensor:
        for part in parts:
            if (pair := part.adapter.matrices.get(f"{self.name}.{name}")) is not None:
                product = pair.product(inputs[part.rows])
                outputs[part.rows] += paired(product.T, num_paired, self.head_dim).T
        return outputs


class TorchStack:
    """Layers that follow each other."""

    def __init__(self, layers: Sequence[TorchLayer], rotations: Tensor) -> None:
        self.layers = list(layers)
        self.num_layers = len(self.layers)
        self.num_bytes = sum(layer.num_bytes for layer in layers)
        self._rotations = rotations

    def forward(
        self,
        x_TD: Tensor,
        positions_T: Tensor,
        plan: StepPlan,
        *,
        tap: int = 0,
        rows: Tensor | None = None,
        parts: Sequence[AdapterRows] = (),
    ) -> Tensor:
        """(T, d_model) through these layers; the rest as in ../kits.py."""
        rotations = self._rotations.index_select(0, positions_T)[:, None]
        for number, layer in enumerate(self.layers):
            if tap and number == tap:
                plan.keep_tap(x_TD)
            if parts:
                x_TD = layer.forward_adapted(x_TD, rotations, plan, parts)
            else:
                x_TD = layer.forward(x_TD, rotations, plan, rows if layer is self.layers[-1] else None)
        return x_TD[rows] if parts and rows is not None else x_TD


def _turn(pairs: Tensor, rotations: Tensor) -> None:
    """Rotate (T, heads, head_dim / 2, 2) in place, in float32 whatever the dtype."""
    if pairs.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(rotations)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(rotations)))


def _optional_norm(norm: NormWeight | None) -> Norm | None:
    return None if norm is None else Norm(*norm)
