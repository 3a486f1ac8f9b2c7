"""The layers of a trunk or a head as the compiled code wants them, called as fast.py calls any stack."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from polyhead.heads.model.adapted import AdapterRows, LowRank
from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.compiled.calls import CompiledLinear, CompiledNorm, SharedLinear, gate, prepared_bytes, product
from polyhead.server.engine.compiled.jobs import ATTEND, JOB, LAYER, LAYERS, PANELS, SCRATCH_BYTES, SEGMENT
from polyhead.server.engine.compiled.machine import PANEL
from polyhead.server.engine.compiled.matrices import Matrix, packed_bytes, split_halves
from polyhead.server.engine.compiled.region import Job, region, scratch
from polyhead.server.engine.layers.llama import LayerParts, paired
from polyhead.server.engine.layers.plan import Segment, StepPlan

LARGEST_HEAD, LARGEST_BLOCK = 512, 512  # numbers and tokens: what a thread's scratch has room for
NUMBER_BYTES = {torch.float32: 4, torch.float16: 2}  # of keys and values as they are kept


class CompiledLayer:
    """One layer's weights, packed."""

    def __init__(self, parts: LayerParts, *, is_int8: bool) -> None:
        self.name, self.head_dim = parts.name, parts.head_dim
        self.num_heads, self.num_kv_heads, self.inner_width = parts.num_heads, parts.num_kv_heads, len(parts.gate[0])
        self.norm, self.mlp_norm = CompiledNorm(*parts.norm), CompiledNorm(*parts.mlp_norm)
        self.qkv, self.out = Matrix(*parts.qkv, is_int8=is_int8), Matrix(*parts.out, is_int8=is_int8)
        self.gated, self.down = Matrix(*parts.gate, is_int8=is_int8, beside=parts.up), Matrix(*parts.down, is_int8=is_int8)
        self._head_norms = [norm[0] if norm is not None else None for norm in (parts.query_norm, parts.key_norm)]
        norms = (self.norm.weight, self.mlp_norm.weight, *self._head_norms)
        self.record = np.zeros(1, LAYER)
        self.record["index"], self.record["window"], self.record["scale"] = parts.index, parts.window, parts.scaling
        self.record["eps"] = parts.norm[1]
        for name, norm in zip(("norm", "mlp_norm", "query_norm", "key_norm"), norms, strict=True):
            self.record[name] = 0 if norm is None else norm.data_ptr()
        matrices = (self.qkv, self.out, self.gated, self.down)
        self.matrices = np.concatenate([each.record for each in matrices])
        self.num_bytes = sum(each.num_bytes for each in matrices) + sum(norm.nbytes for norm in norms if norm is not None)


@dataclass(slots=True)
class Tables:
    """Whose rows a plan's queries are, as the compiled code reads it."""

    segments: np.ndarray  # SEGMENT
    slots: np.ndarray  # int64


class CompiledAttention:
    """Of compiled layers, which attend within `CompiledStack.forward`: it prepares a step for them."""

    name = "compiled"
    reads_past_ends = False

    def prepare(self, cache: KvCache, segments: list[Segment]) -> Tables:
        table = np.zeros(len(segments), SEGMENT)
        slots: list[int] = []
        row = 0
        records = []
        for segment in segments:
            num_rows = segment.end - segment.start
            records.append((row, num_rows, segment.start, len(slots)))
            slots += segment.slots
            row += num_rows
        table[:] = records
        return Tables(table, np.array(slots, dtype=np.int64))

    def attend(self, plan: StepPlan, layer: int, queries: Tensor, scale: float, window: int, softcap: float | None = None) -> Tensor:
        raise AssertionError("this plan is for compiled layers")


class CompiledStack:
    """Layers that follow each other."""

    def __init__(self, layers: Sequence[CompiledLayer], rotations: Tensor) -> None:
        self.layers = list(layers)
        self._rotations = _factors(rotations)
        self._records = np.concatenate([layer.record for layer in layers]) if layers else np.zeros(0, LAYER)
        self._matrices = np.concatenate([layer.matrices for layer in layers]) if layers else None
        self.num_layers = len(layers)
        self.num_bytes = sum(layer.num_bytes for layer in layers)

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
        """(T, d_model) through these layers; the rest as in kits.py."""
        assert not (parts and tap), "adapters are heads', and taps the trunk's"
        if parts:
            for number in range(self.num_layers):
                x_TD = self._forward_adapted(number, x_TD, positions_T, plan, parts)
            return x_TD if rows is None else x_TD[rows]
        if not self.layers:
            return x_TD if rows is None else x_TD[rows]
        x_TD = x_TD.contiguous()
        job = self._attention_job(LAYERS, 0, self.num_layers, len(x_TD), positions_T, plan)
        job["x"], job["width"] = x_TD.data_ptr(), x_TD.shape[1]
        assert self._matrices is not None
        job["matrices"], job["inner_width"] = self._matrices.ctypes.data, self.layers[0].inner_width
        if tap and plan.taps is not None:
            job["tap_layer"], job["taps"], job["tap_rows"] = tap, plan.taps.data_ptr(), plan.write_rows.data_ptr()
        num_asked = len(x_TD)
        if rows is not None:
            assert plan.asked is not None
            asked: Tables = plan.asked.prepared
            num_asked = len(rows)
            job["num_asked"], job["asked_rows"], job["num_asked_segments"] = num_asked, rows.data_ptr(), len(asked.segments)
            job["asked_segments"], job["asked_slots"] = asked.segments.ctypes.data, asked.slots.ctypes.data
        region().run(job)
        return x_TD[:num_asked]

    def _attention_job(self, kind: int, first: int, last: int, num_rows: int, positions: Tensor, plan: StepPlan) -> Job:
        layer = self.layers[first]
        widths = (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim, layer.num_heads * layer.head_dim, layer.inner_width
        job = np.zeros(1, JOB)
        widest = max(layer.qkv.num_in, layer.inner_width, widths[1])
        addresses = scratch.addresses(
            [SCRATCH_BYTES * torch.get_num_threads(), num_rows * prepared_bytes(widest), num_rows * 4, num_rows * 4]
            + [num_rows * width * 4 for width in widths]
        )
        for name, address in zip(("scratch", "rows", "row_scales", "row_sums", "qkv", "attended", "inner"), addresses, strict=True):
            job[name] = address
        tables: Tables = plan.prepared
        job["kind"], job["num_rows"], job["num_asked"] = kind, num_rows, -1
        job["layers"], job["num_layers"] = self._records.ctypes.data + first * self._records.itemsize, last - first
        job["num_heads"], job["num_kv_heads"], job["head_dim"] = layer.num_heads, layer.num_kv_heads, layer.head_dim
        job["rotations"], job["positions"] = self._rotations.data_ptr(), positions.data_ptr()
        job["cache"], job["block_size"] = plan.cache.addresses.ctypes.data, plan.cache.shape.block_size
        job["number_bytes"] = NUMBER_BYTES[plan.cache.shape.kept_dtype]
        job["num_new"], job["write_rows"] = len(plan.write_rows), plan.write_rows.data_ptr()
        job["new_rows"] = 0 if plan.new_rows is None else plan.new_rows.data_ptr()
        job["num_segments"], job["segments"] = len(tables.segments), tables.segments.ctypes.data
        job["slots"] = tables.slots.ctypes.data
        return job

    def _forward_adapted(
        self, number: int, x_TD: Tensor, positions: Tensor, plan: StepPlan, parts: Sequence[AdapterRows]
    ) -> Tensor:
        """The same with adapters, each added to its own rows of every product; so nothing is fused behind a product."""
        layer = self.layers[number]
        keys = layer.num_heads * layer.head_dim
        values = keys + layer.num_kv_heads * layer.head_dim
        normed = layer.norm(x_TD)
        qkv = product(layer.qkv, normed)
        _add(parts, f"{layer.name}.self_attn.q_proj", normed, qkv[:, :keys], layer.num_heads)
        _add(parts, f"{layer.name}.self_attn.k_proj", normed, qkv[:, keys:values], layer.num_kv_heads)
        _add(parts, f"{layer.name}.self_attn.v_proj", normed, qkv[:, values:])
        attended = x_TD.new_empty(len(x_TD), keys)
        job = self._attention_job(ATTEND, number, number + 1, len(x_TD), positions, plan)
        job["qkv"], job["attended"] = qkv.data_ptr(), attended.data_ptr()
        region().run(job)
        x_TD = x_TD + _add(parts, f"{layer.name}.self_attn.o_proj", attended, product(layer.out, attended))
        normed = layer.mlp_norm(x_TD)
        gates, ups = split_halves(product(layer.gated, normed, PANELS, layer.gated.num_panels * PANEL))
        _add(parts, f"{layer.name}.mlp.gate_proj", normed, gates[:, : layer.inner_width])
        _add(parts, f"{layer.name}.mlp.up_proj", normed, ups[:, : layer.inner_width])
        inner = gate(gates, ups)[:, : layer.inner_width]
        return x_TD + _add(parts, f"{layer.name}.mlp.down_proj", inner, product(layer.down, inner))


_known_factors: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()


def _factors(rotations: Tensor) -> Tensor:
    """(positions, 2, head_dim): what each number of a pair is multiplied by, and what its other one. Made once for all heads."""
    if rotations not in _known_factors:
        cosines, sines = rotations.real.repeat_interleave(2, dim=1), torch.stack((-rotations.imag, rotations.imag), dim=2).flatten(1)
        _known_factors[rotations] = torch.stack((cosines, sines), dim=1).contiguous()
    return _known_factors[rotations]


def _low_rank(pair: LowRank, rows: Tensor) -> Tensor:
    """An adapter's product: what is added to the base's own output."""
    return SharedLinear(pair.b)(SharedLinear(pair.a)(rows) * pair.scaling)


def _add(parts: Sequence[AdapterRows], name: str, inputs: Tensor, outputs: Tensor, num_paired: int = 0) -> Tensor:
    for part in parts:
        if (pair := part.adapter.matrices.get(name)) is not None:
            added = _low_rank(pair, inputs[part.rows])
            head_dim = added.shape[1] // num_paired if num_paired else 0
            outputs[part.rows] += paired(added.T, num_paired, head_dim).T
    return outputs


@dataclass(frozen=True, slots=True)
class CompiledKit:
    """float32 or int8 on the CPU."""

    is_int8: bool

    def layer(self, parts: LayerParts) -> CompiledLayer:
        return CompiledLayer(parts, is_int8=self.is_int8)

    def stack(self, layers: Sequence[CompiledLayer], rotations: Tensor) -> CompiledStack:
        return CompiledStack(layers, rotations)

    def norm(self, weight: Tensor, eps: float) -> CompiledNorm:
        return CompiledNorm(weight, eps)

    def linear(self, weight_OI: Tensor) -> CompiledLinear:
        return CompiledLinear(weight_OI, is_int8=self.is_int8)

    def tied(self, weight_OI: Tensor) -> CompiledLinear | SharedLinear:
        """Of the embedding, which stays as it is: int8 takes a copy, float32 none."""
        return CompiledLinear(weight_OI, is_int8=True) if self.is_int8 else SharedLinear(weight_OI)

    def score(self, weight_OI: Tensor) -> SharedLinear:
        return SharedLinear(weight_OI)

    def weight_bytes(self, shape: tuple[int, ...]) -> int:
        return packed_bytes(shape, is_int8=self.is_int8)

    def output_bytes(self, shape: tuple[int, ...]) -> int:
        return packed_bytes(shape, is_int8=self.is_int8)
