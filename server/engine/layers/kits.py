"""Ways to hold and run the layers of a trunk or a head: the interface that fast.py uses, and torch's way (compiled: compiled/stack.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from polyhead.heads.model.adapted import AdapterRows
from polyhead.server.engine.layers.cuda.fused import Fused
from polyhead.server.engine.layers.linears import Linears
from polyhead.server.engine.layers.llama import LayerParts
from polyhead.server.engine.layers.plan import StepPlan
from polyhead.server.engine.layers.torch.stack import Norm, TorchLayer, TorchStack


class Rows(Protocol):
    """(T, in) -> (T, out): a norm, or a product with a weight."""

    def __call__(self, x_TI: Tensor, /) -> Tensor: ...


class HeldRows(Rows, Protocol):
    """The same, with the bytes of its weight."""

    @property
    def num_bytes(self) -> int:
        """Of the weight as it is held; 0 if it belongs to another part."""
        ...


class Stack(Protocol):
    """Layers that follow each other."""

    @property
    def num_layers(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Of their weights as they are held."""
        ...

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
        """(T, d_model) through these layers; x may be overwritten.

        The plan keeps what enters layer `tap`, if that is not 0. With `rows`, which `plan.asked` is of, only those come out.
        """
        ...


class Kit(Protocol):
    """One way to hold and run weights."""

    def layer(self, parts: LayerParts) -> Any:
        """One layer, packed: for `stack`."""
        ...

    def stack(self, layers: Sequence[Any], rotations: Tensor) -> Stack:
        """`rotations` (max_context, head_dim / 2), complex: each position's rotation."""
        ...

    def norm(self, weight: Tensor, eps: float) -> Rows: ...

    def linear(self, weight_OI: Tensor) -> HeldRows: ...

    def tied(self, weight_OI: Tensor) -> HeldRows:
        """Of the embedding, which stays as it is."""
        ...

    def score(self, weight_OI: Tensor) -> Rows:
        """Of a value head's one row."""
        ...

    def weight_bytes(self, shape: tuple[int, ...]) -> int:
        """Of one tensor of a head file, as it is held."""
        ...

    def output_bytes(self, shape: tuple[int, ...]) -> int:
        """The same of an output projection."""
        ...


@dataclass(frozen=True, slots=True)
class TorchKit:
    """torch's own calls, on any device."""

    linears: Linears
    fused: Fused | None = None  # kernels of a GPU for what stands between products

    def layer(self, parts: LayerParts) -> TorchLayer:
        return TorchLayer(parts, self.linears, self.fused)

    def stack(self, layers: Sequence[TorchLayer], rotations: Tensor) -> TorchStack:
        return TorchStack(layers, rotations)

    def norm(self, weight: Tensor, eps: float) -> Norm:
        return Norm(weight, eps)

    def linear(self, weight_OI: Tensor) -> HeldRows:
        return self.linears.linear(weight_OI, None)

    def tied(self, weight_OI: Tensor) -> HeldRows:
        return self.linears.shared(weight_OI)

    def score(self, weight_OI: Tensor) -> Rows:
        return lambda x_TI: linear(x_TI, weight_OI)

    def weight_bytes(self, shape: tuple[int, ...]) -> int:
        return self.linears.weight_bytes(shape)

    def output_bytes(self, shape: tuple[int, ...]) -> int:
        return self.linears.weight_bytes(shape)


@dataclass(frozen=True, slots=True)
class OutputApart:
    """A kit whose output projections are another's: logits in a precision of their own, beside layers in 8 or 16 bits."""

    layers: Kit
    outputs: Kit
    dtype: torch.dtype  # that outputs compute in

    def layer(self, parts: LayerParts) -> Any:
        return self.layers.layer(parts)

    def stack(self, layers: Sequence[Any], rotations: Tensor) -> Stack:
        return self.layers.stack(layers, rotations)

    def norm(self, weight: Tensor, eps: float) -> Rows:
        return self.layers.norm(weight, eps)

    def score(self, weight_OI: Tensor) -> Rows:
        return self.layers.score(weight_OI)

    def linear(self, weight_OI: Tensor) -> HeldRows:
        return _InDtype(self.outputs.linear(weight_OI.to(self.dtype)), self.dtype)

    def tied(self, weight_OI: Tensor) -> HeldRows:
        """A copy only where the embedding has another dtype."""
        is_same = weight_OI.dtype == self.dtype
        return _InDtype(self.outputs.tied(weight_OI), self.dtype) if is_same else self.linear(weight_OI)

    def weight_bytes(self, shape: tuple[int, ...]) -> int:
        return self.layers.weight_bytes(shape)

    def output_bytes(self, shape: tuple[int, ...]) -> int:
        return self.outputs.output_bytes(shape)


class _InDtype:
    """A product whose inputs are first brought to its dtype."""

    def __init__(self, rows: HeldRows, dtype: torch.dtype) -> None:
        self._rows, self._dtype = rows, dtype
        self.num_bytes = rows.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self._rows(x_TI.to(self._dtype))
