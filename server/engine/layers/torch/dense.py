"""Plain matrix products, for every device and dtype that no packing is known for: bfloat16 on the CPU, and all of CUDA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from polyhead.server.engine.layers.linears import Linears


class DenseLinear:
    """x @ weight.T + bias as torch computes it."""

    __slots__ = ("_bias", "_weight", "adds_for_free", "num_bytes")

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None, *, is_on_gpu: bool = False) -> None:
        """`is_on_gpu`: sums are part of the product, which on the CPU would change bits."""
        self._weight, self._bias, self.adds_for_free = _own(weight_OI), bias, is_on_gpu and bias is None
        self.num_bytes = self._weight.nbytes + (0 if bias is None else bias.nbytes)

    def __call__(self, x_TI: Tensor) -> Tensor:
        return linear(x_TI, self._weight, self._bias)

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        return other_TO.addmm_(x_TI, self._weight.T) if self.adds_for_free else self(x_TI).add_(other_TO)


class SharedLinear:
    """Of a weight that another part holds: it needs no memory of its own."""

    __slots__ = ("_weight",)
    num_bytes = 0
    adds_for_free = False

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight = weight_OI

    def __call__(self, x_TI: Tensor) -> Tensor:
        return linear(x_TI, self._weight)

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        return self(x_TI).add_(other_TO)


class DenseGated:
    """Gate and up as one product."""

    __slots__ = ("_both", "_silu_up")

    def __init__(
        self,
        gate_OI: Tensor,
        gate_bias: Tensor | None,
        up_OI: Tensor,
        up_bias: Tensor | None,
        *,
        silu_up: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`silu_up`: of (T, gate and up), in one launch."""
        self._silu_up = silu_up
        self._both = DenseLinear(torch.cat([gate_OI, up_OI]), joined_bias(gate_OI, gate_bias, up_OI, up_bias))

    @property
    def num_bytes(self) -> int:
        return self._both.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        if self._silu_up is not None:
            return self._silu_up(self._both(x_TI))
        gate, up = self.parts(x_TI)
        return silu(gate).mul_(up)

    def parts(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = self._both(x_TI).chunk(2, dim=1)
        return gate, up


def joined_bias(gate_OI: Tensor, gate_bias: Tensor | None, up_OI: Tensor, up_bias: Tensor | None) -> Tensor | None:
    """The bias of gate and up as one product."""
    if gate_bias is None and up_bias is None:
        return None
    given = ((gate_bias, gate_OI), (up_bias, up_OI))
    return torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for bias, weight in given])


def dense_linears(dtype: torch.dtype, *, is_on_gpu: bool = False, silu_up: Callable[[Tensor], Tensor] | None = None) -> Linears:
    """Weights of this dtype, as they are."""
    dense, gated = partial(DenseLinear, is_on_gpu=is_on_gpu), partial(DenseGated, silu_up=silu_up)
    return Linears(dense, gated, SharedLinear, partial(dense_bytes, dtype.itemsize))


def dense_bytes(item_bytes: int, shape: tuple[int, ...]) -> int:
    return prod(shape) * item_bytes


def _own(weight: Tensor) -> Tensor:
    """Itself, or a copy if it is a view of something larger: of a whole head file, which would stay in memory with it."""
    return weight.clone() if weight.untyped_storage().nbytes() > weight.nbytes else weight
