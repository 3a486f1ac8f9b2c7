"""Which part of a model a rank has: of each layer's attention some of the heads, of its feed-forward net some of the inner width.

A share is a model of the same family with fewer heads and a narrower net, so that everything which describes, builds and checks a model
works on a share as well. What it is not: its layers' results are parts, and the sum over all ranks is the whole (layers.py). Query, key,
value, gate and up are cut by their outputs, o and down by their inputs (Shoeybi et al., 2019, "Megatron-LM"). Norms and the embedding are
whole on every rank. The output to the vocabulary is whole, and on rank 0 alone: logits are wanted there and nowhere else. So they are not
gathered, and the other ranks neither hold nor compute them.
"""

from __future__ import annotations

import copy
import enum
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.model.checkpoint import Checkpoint, TensorInfo
from polyhead.heads.model.skeleton import build_skeleton
from polyhead.heads.model.spec import ModelSpec, describe_config
from polyhead.server.engine.layers.llama import unknown_parts

DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")  # names in the config
READ_BYTES = 1 << 20  # of rows, of which a rank takes some of the columns


class Cut(enum.Enum):
    """How a tensor is shared."""

    WHOLE = enum.auto()
    BY_OUTPUTS = enum.auto()  # some of its rows
    BY_INPUTS = enum.auto()  # some of its columns
    ADDED_ONCE = enum.auto()  # the bias of a sum: on rank 0 alone, zero elsewhere


_BY_OUTPUTS = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
_BY_INPUTS = frozenset({"o_proj", "down_proj"})


def cut_of(name: str) -> Cut:
    """Of a tensor by its name, global or the checkpoint's own: "model.layers.3.self_attn.q_proj.weight"."""
    module, _, parameter = name.rpartition(".")
    linear = module.rpartition(".")[2]
    if linear in _BY_OUTPUTS:
        return Cut.BY_OUTPUTS
    if linear in _BY_INPUTS:
        return Cut.BY_INPUTS if parameter == "weight" else Cut.ADDED_ONCE
    return Cut.WHOLE


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's of `size`."""

    rank: int
    size: int

    def range(self, count: int) -> tuple[int, int]:
        """[start, stop) of so many rows or columns."""
        each = count // self.size
        return self.rank * each, (self.rank + 1) * each

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's part; a view where it can be one."""
        cut = cut_of(name)
        if cut is Cut.BY_OUTPUTS:
            return tensor[slice(*self.range(len(tensor)))]
        if cut is Cut.BY_INPUTS:
            return tensor[:, slice(*self.range(tensor.shape[1]))]
        return torch.zeros_like(tensor) if cut is Cut.ADDED_ONCE and self.rank else tensor

    def shape(self, name: str, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Of this rank's part."""
        cut = cut_of(name)
        if cut is Cut.BY_OUTPUTS:
            return (whole[0] // self.size, *whole[1:])
        return (whole[0], whole[1] // self.size) if cut is Cut.BY_INPUTS else whole


@dataclass(frozen=True)
class ShareOfCheckpoint(Checkpoint):
    """A checkpoint that reads one rank's share of each tensor: never more than that, and a megabyte, is in memory."""

    share: Share = field(kw_only=True)

    @classmethod
    def of_whole(cls, checkpoint: Checkpoint, share: Share) -> ShareOfCheckpoint:
        return cls(checkpoint.folder, checkpoint.config, checkpoint.tensors, share=share)

    def info(self, name: str) -> TensorInfo:
        whole = super().info(name)
        return replace(whole, shape=self.share.shape(name, whole.shape))

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        assert out is None, "tensors that are stacked are of families that are not shared"
        whole, cut = super().info(name), cut_of(name)
        if cut is Cut.BY_OUTPUTS:
            return self.read_rows(name, *self.share.range(whole.shape[0]))
        if cut is Cut.BY_INPUTS:
            return self._read_columns(name, whole)
        return self.share.of(name, super().read(name))

    def _read_columns(self, name: str, whole: TensorInfo) -> Tensor:
        num_rows, columns = whole.shape[0], slice(*self.share.range(whole.shape[1]))
        taken = torch.empty(self.share.shape(name, whole.shape), dtype=whole.dtype)
        step = max(1, READ_BYTES * num_rows // max(1, whole.num_bytes))
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            taken[start:stop] = self.read_rows(name, start, stop)[:, columns]
        return taken


def spec_of_share(spec: ModelSpec, size: int) -> ModelSpec:
    """The description of one rank's share; all ranks' are alike. Call `check_shares` first."""
    config = copy.deepcopy(spec.config)
    config.head_dim = _head_dim(spec.config)  # before the number of heads says something else
    for name in DIVIDED:
        setattr(config, name, _number(spec.config, name) // size)
    return replace(describe_config(config, spec.split_layer, spec.tied), sources=spec.sources)


def check_shares(spec: ModelSpec, size: int) -> None:
    """FailedPrecondition names the part of the model that cannot be shared by so many ranks. Reads no weights."""
    model = build_skeleton(spec.config)
    unknown = unknown_parts(getattr(getattr(model, spec.base), spec.layers))
    if unknown or _head_dim(spec.config) % 2:
        what = ", ".join(sorted(unknown)) or f"heads of {_head_dim(spec.config)} numbers"
        raise FailedPrecondition(
            f"layers of this kind are not shared by ranks: {what} (model_type {spec.config.model_type!r})\n"
            "hint: leave out --tensor-parallel, which serves llama, mistral, qwen2 and qwen3",
            field="tensor_parallel",
        )
    numbers = {name: _number(spec.config, name) for name in DIVIDED}
    for name, number in numbers.items():
        if number % size:
            common = math.gcd(*numbers.values())
            possible = [str(ranks) for ranks in range(2, common + 1) if not common % ranks]
            hint = f"this model can be shared by {', '.join(possible)} ranks" if possible else "serve this model without --tensor-parallel"
            raise FailedPrecondition(f"{size} ranks cannot share the model's {name}: {number}\nhint: {hint}", field="tensor_parallel")


def _number(config: Any, name: str) -> int:
    number = getattr(config, name, None)
    return int(config.num_attention_heads if number is None else number)  # no key heads of their own: as many


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
