"""Matrix products of int8 weights and activations, each with a scale per row: a quarter of the bytes, and no row minds its neighbours.

Torch's own dynamic form takes one scale over all rows of a batch, so that a token's state would depend on who stands beside it. Here each
row is divided by its own largest number first, and the kernel (fbgemm) is told one fixed scale.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from polyhead.server.engine.linears import Kit, at_once, in_tiles

SMALLEST = 1e-30  # a row of zeros is divided by this
WEIGHT_LEVELS = 127
# Of one sign. Without VNNI fbgemm adds two products in 16 bits, which eight-bit activations overflow.
ACTIVATION_LEVELS = 127 if getattr(torch.cpu, "_is_vnni_supported", lambda: False)() else 63

_product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default


class Int8Linear:
    """float32 in and out. Integer sums are exact: a row's result is bit for bit the same in any batch."""

    __slots__ = ("_bias", "_num_rows", "_packed", "num_bytes")

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        self._packed = _quantized(weight_OI)
        self._bias = bias
        self._num_rows = len(weight_OI)
        self.num_bytes = int8_bytes(tuple(weight_OI.shape)) + (0 if bias is None else bias.numel() * 4)

    def __call__(self, x_TI: Tensor) -> Tensor:
        product, scale = self.scaled(x_TI)
        return product.mul_(scale) if self._bias is None else torch.addcmul(self._bias, product, scale)

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        product, scale = self.scaled(x_TI)
        total = torch.addcmul(other_TO, product, scale)
        return total if self._bias is None else total.add_(self._bias)

    def scaled(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        """The product of rows scaled to [-1, 1], (T, out), and their scales, (T, 1). A row that is not finite gives NaN by its scale."""
        if not x_TI.shape[0]:
            return x_TI.new_empty(0, self._num_rows), x_TI.new_empty(0, 1)
        scale = x_TI.abs().amax(dim=1, keepdim=True).clamp_min_(SMALLEST)
        return _product(x_TI / scale, 1 / ACTIVATION_LEVELS, ACTIVATION_LEVELS + 1, self._packed), scale


class Int8Gated:
    """Gate and up share the rows' scales, and so are one product."""

    __slots__ = ("_both",)

    def __init__(self, gate_OI: Tensor, gate_bias: Tensor | None, up_OI: Tensor, up_bias: Tensor | None) -> None:
        bias = None
        if gate_bias is not None or up_bias is not None:
            given = ((gate_bias, gate_OI), (up_bias, up_OI))
            bias = torch.cat([weight.new_zeros(len(weight)) if each is None else each for each, weight in given])
        self._both = Int8Linear(torch.cat([gate_OI, up_OI]), bias)

    @property
    def num_bytes(self) -> int:
        return self._both.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        gate, up = self.parts(x_TI)
        return silu(gate).mul_(up)

    def parts(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = self._both(x_TI).chunk(2, dim=1)
        return gate, up


def _quantized(weight_OI: Tensor) -> Any:
    """fbgemm's own layout of the weight, one scale for each output."""
    scales = weight_OI.abs().amax(dim=1).clamp_min_(SMALLEST).double() / WEIGHT_LEVELS
    zeros = torch.zeros(len(weight_OI), dtype=torch.long)
    return torch.ops.quantized.linear_prepack(torch.quantize_per_channel(weight_OI, scales, zeros, 0, torch.qint8), None)


def int8_bytes(shape: tuple[int, ...]) -> int:
    """One byte a number, and a scale, a zero point and a sum for each output; norms and a value head's one row stay float32."""
    return prod(shape) + 12 * shape[0] if len(shape) == 2 and shape[0] > 1 else prod(shape) * 4


# torch 2.13 warns once a process that quantized tensors will go one day; fbgemm's packing takes nothing else. Heads are built on several
# threads, which must not change warning filters, so it warns here.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    _quantized(torch.ones(1, 1))

INT8 = Kit(Int8Linear, Int8Gated, Int8Linear, int8_bytes, at_once)
INT8_TILED = replace(INT8, by_rows=in_tiles)  # integer sums are exact in any batch: only what is left in float32 needs tiles
