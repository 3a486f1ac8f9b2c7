"""Matrix products with frozen weights, packed once for the kernel that runs them. The packed weight replaces the original.

A kit is one way to hold weights: FLOAT32 packed by oneDNN, INT8 (int8.py) with a scale per row on both sides, TILED float32 whose rows come
out the same bit for bit whatever stands beside them. Products of a few rows are bound by reading the weight (BENCHMARKS.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad, silu

PACKED_FOR_ROWS = 512  # a hint: oneDNN chooses the layout for products of this many rows
TILE_ROWS = 16  # of a tiled product: one kernel call, always of this shape


Product = Callable[[Tensor], Tensor]  # (rows, in) -> (rows, out)


class Linear(Protocol):
    """x @ weight.T + bias, (T, in) -> (T, out)."""

    @property
    def num_bytes(self) -> int:
        """Of the weights as they are held."""
        ...

    def __call__(self, x_TI: Tensor) -> Tensor: ...

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        """other + product."""
        ...


class Gated(Protocol):
    """silu(x @ gate.T) * (x @ up.T), (T, in) -> (T, out)."""

    @property
    def num_bytes(self) -> int:
        """Of the weights as they are held."""
        ...

    def __call__(self, x_TI: Tensor) -> Tensor: ...

    def parts(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        """Both products, before anything is done to them."""
        ...


@dataclass(frozen=True, slots=True)
class Kit:
    """How the weights of a trunk or a head are held and multiplied."""

    linear: Callable[[Tensor, Tensor | None], Linear]  # weight (out, in), bias (out)
    gated: Callable[[Tensor, Tensor | None, Tensor, Tensor | None], Gated]  # gate and up, each with its bias
    unpacked: Callable[[Tensor], Linear]  # of a weight that somebody else reads as well
    weight_bytes: Callable[[tuple[int, ...]], int]  # of one tensor of a head file, as it is held
    by_rows: Callable[[Product, Tensor], Tensor]  # runs any other product over rows: an adapter's, a value head's


def at_once(product: Product, x_TI: Tensor) -> Tensor:
    """All rows in one call."""
    return product(x_TI)


def in_tiles(product: Product, x_TI: Tensor) -> Tensor:
    """TILE_ROWS rows a call: kernels choose their order of sums by the number of rows, and so round differently."""
    num_rows = len(x_TI)
    tiles = torch.split(pad(x_TI, (0, 0, 0, -num_rows % TILE_ROWS)), TILE_ROWS)
    return torch.cat([product(tile) for tile in tiles])[:num_rows]


class UnpackedLinear:
    """Of a weight that others read as it lies: oneDNN's kernel without its layout. Takes nothing of its own."""

    __slots__ = ("_weight",)
    num_bytes = 0

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight = weight_OI

    def __call__(self, x_TI: Tensor) -> Tensor:
        if not x_TI.shape[0]:
            return x_TI.new_empty(0, len(self._weight))
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_TI, self._weight, None, "none", [], ""))

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        return other_TO + self(x_TI)


class PackedLinear:
    """In float32 on the CPU, in oneDNN's own layout, with what follows it fused in."""

    __slots__ = ("_bias", "_num_rows", "_weight", "num_bytes")

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        assert weight_OI.dtype == torch.float32
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, PACKED_FOR_ROWS)
        self._bias = bias
        self._num_rows = len(weight_OI)
        self.num_bytes = weight_OI.numel() * 4 + (0 if bias is None else bias.numel() * 4)

    def __call__(self, x_TI: Tensor) -> Tensor:
        if not x_TI.shape[0]:
            return x_TI.new_empty(0, self._num_rows)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_TI, self._weight, self._bias, "none", [], ""))

    def silu(self, x_TI: Tensor) -> Tensor:
        """silu of the product."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_TI, self._weight, self._bias, "swish", [], ""))

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x_TI, other_TO, self._weight, self._bias, "add"))

    def times(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        """other * product."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x_TI, other_TO, self._weight, self._bias, "mul"))


class PackedGated:
    """Two packed products, silu and the product of both fused into them."""

    __slots__ = ("_gate", "_up")

    def __init__(self, gate_OI: Tensor, gate_bias: Tensor | None, up_OI: Tensor, up_bias: Tensor | None) -> None:
        self._gate, self._up = PackedLinear(gate_OI, gate_bias), PackedLinear(up_OI, up_bias)

    @property
    def num_bytes(self) -> int:
        return self._gate.num_bytes + self._up.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self._up.times(x_TI, self._gate.silu(x_TI))

    def parts(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        return self._gate(x_TI), self._up(x_TI)


class Tiled:
    """Another linear, run tile by tile."""

    __slots__ = ("_linear",)

    def __init__(self, linear: Linear) -> None:
        self._linear = linear

    @property
    def num_bytes(self) -> int:
        return self._linear.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        return in_tiles(self._linear, x_TI)

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        return other_TO + self(x_TI)


class TiledGated:
    """As PackedGated, tile by tile."""

    __slots__ = ("_gate", "_up")

    def __init__(self, gate_OI: Tensor, gate_bias: Tensor | None, up_OI: Tensor, up_bias: Tensor | None) -> None:
        self._gate, self._up = PackedLinear(gate_OI, gate_bias), PackedLinear(up_OI, up_bias)

    @property
    def num_bytes(self) -> int:
        return self._gate.num_bytes + self._up.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        return in_tiles(self._tile, x_TI)

    def _tile(self, tile: Tensor) -> Tensor:
        """silu, too, has one kernel for whole vectors and another for what is left at the end."""
        return silu(self._gate(tile)).mul_(self._up(tile))

    def parts(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        return in_tiles(self._gate, x_TI), in_tiles(self._up, x_TI)


def tiled(weight_OI: Tensor, bias: Tensor | None = None) -> Tiled:
    return Tiled(PackedLinear(weight_OI, bias))


def float_bytes(shape: tuple[int, ...]) -> int:
    return prod(shape) * 4


FLOAT32 = Kit(PackedLinear, PackedGated, UnpackedLinear, float_bytes, at_once)
TILED = Kit(tiled, TiledGated, lambda weight: Tiled(UnpackedLinear(weight)), float_bytes, in_tiles)
