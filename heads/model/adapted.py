"""Adapters beside a head's weights: y = base(x) + scaling * B(A x), never merged, so that ten of them share one base in memory.

Each module made here is a skeleton of its own over the base's very parameters. Knows no files, versions or batches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from polyhead.heads.format.lora import LoraAdapter, modules_of
from polyhead.heads.model.family import HeadModule


@dataclass(frozen=True, eq=False, slots=True)
class LowRank:
    """One module's pair of matrices."""

    a: Tensor  # (rank, in)
    b: Tensor  # (out, rank)
    scaling: float

    def product(self, rows: Tensor) -> Tensor:
        """(..., in) -> (..., out): what is added to the base's own output."""
        return linear(linear(rows, self.a) * self.scaling, self.b)


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Adapter:
    """One adapter's matrices by global module name, on the device and at the dtype of its head."""

    matrices: Mapping[str, LowRank]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], lora: LoraAdapter, dtype: torch.dtype, device: torch.device | str) -> Adapter:
        """From a checked file's tensors (`heads.lora.check_adapter`)."""

        def matrix(module: str, letter: str) -> Tensor:
            return tensors[f"{module}.lora_{letter}.weight"].detach().to(device=device, dtype=dtype)

        modules = modules_of(tensors)
        return cls({module: LowRank(matrix(module, "A"), matrix(module, "B"), lora.scaling_of(module)) for module in modules})

    @property
    def num_bytes(self) -> int:
        """Of its own matrices."""
        return sum(tensor.numel() * tensor.element_size() for each in self.matrices.values() for tensor in (each.a, each.b))


@dataclass(frozen=True, eq=False, slots=True)
class AdapterRows:
    """The tokens of a call that one adapter owns."""

    rows: slice
    adapter: Adapter


class _Call:
    """Which rows belong to which adapter in the call that is running. One skeleton's linears share one."""

    def __init__(self, parts: Sequence[AdapterRows] = (), num_rows: int | None = None) -> None:
        self.parts = parts
        self.num_rows = num_rows  # None: the parts do not depend on it


class _AdaptedLinear(nn.Module):
    """A base's linear, which adds each adapter's product to that adapter's rows."""

    def __init__(self, base: nn.Linear, name: str, call: _Call) -> None:
        super().__init__()
        self.base = base
        self._name = name
        self._call = call

    @property
    def weight(self) -> Tensor:
        """The base's; some families ask a layer for its dtype."""
        return self.base.weight

    def forward(self, inputs: Tensor) -> Tensor:
        output = cast(Tensor, self.base(inputs))
        call = self._call
        for part in call.parts:
            if (pair := part.adapter.matrices.get(self._name)) is not None:
                assert call.num_rows in (None, inputs.shape[-2]), f"{self._name} sees other rows than the batch has"
                output[..., part.rows, :].add_(pair.product(inputs[..., part.rows, :]))  # in place, also where gradients flow
        return output


def build_lora_head(base: HeadModule, adapter: Adapter) -> HeadModule:
    """The base with one adapter on every row. Shares all of the base's parameters; safe to call beside other heads on that base."""
    return _adapted(base, adapter.matrices, _Call([AdapterRows(slice(None), adapter)]))


class HeadGroup:
    """One base and any adapters on it, run together: the base's layers see all rows, each adapter adds to its own.

    Not to be called by two threads at once: the engine's thread owns it.
    """

    def __init__(self, base: HeadModule) -> None:
        self._call = _Call()
        self._module = _adapted(base, base.spec.head_linears, self._call)

    def __call__(
        self, parts: Sequence[AdapterRows], states_1TD: Tensor, position_ids_1T: Tensor, rows: Tensor | None = None, **attention: Any
    ) -> Tensor:
        """As HeadModule.forward; rows of T that are in no part are the base's own."""
        self._call.parts, self._call.num_rows = parts, states_1TD.shape[1]
        try:
            return cast(Tensor, self._module(states_1TD, position_ids_1T, rows, **attention))
        finally:
            self._call.parts = ()


def _adapted(base: HeadModule, names: Iterable[str], call: _Call) -> HeadModule:
    head = _skeleton_over(base)
    spec = base.spec
    for name in names:
        local = spec.to_local(name)
        parent, _, attribute = (local if head.score is None else local.removeprefix(f"{spec.base}.")).rpartition(".")
        owner = head.decoder.get_submodule(parent)
        setattr(owner, attribute, _AdaptedLinear(cast(nn.Linear, getattr(owner, attribute)), name, call))
    return head


def _skeleton_over(base: HeadModule) -> HeadModule:
    """A second set of modules over the same parameters and buffers."""
    shared = [*base.parameters(), *base.buffers(), base.spec]
    return copy.deepcopy(base, {id(each): each for each in shared})


def merged(tensors: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """A plain head's tensors with the adapter added in, W + scaling * B A: for a folder without adapters. Keeps each dtype."""
    found = dict(tensors)
    for module, pair in adapter.matrices.items():
        weight = found[f"{module}.weight"]
        change = pair.scaling * (pair.b.double() @ pair.a.double())
        found[f"{module}.weight"] = (weight.double() + change.to(weight.device)).to(weight.dtype)
    return found
