"""int8 on CUDA: by torch's own integer matrix product, which tensor cores compute.

Each weight has a scale per output and each row of activations its own, so that no row minds its neighbours, and integer sums are exact.
Rows are padded to what the kernel takes. It reads a byte a weight; weights dequantised first would be read, written and read again.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad, silu

from polyhead.server.engine.dense import joined_bias
from polyhead.server.engine.linears import Linears

SMALLEST = 1e-30  # a row of zeros is divided by this
LEVELS = 127
FEWEST_ROWS = 32  # cuBLASLt takes more than 16
MULTIPLE = 8  # of rows, inputs and outputs


class Int8MatrixLinear:
    """Any float dtype in and the same out."""

    __slots__ = ("_bias", "_scale", "_weight", "num_bytes")

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        quantized, scale = _quantized(weight_OI)
        outputs, inputs = weight_OI.shape
        self._weight = pad(quantized, (0, -inputs % MULTIPLE, 0, -outputs % MULTIPLE))
        self._scale = scale[:, 0]  # (out,), float32
        self._bias = bias
        self.num_bytes = self._weight.nbytes + scale.nbytes + (0 if bias is None else bias.nbytes)

    def __call__(self, x_TI: Tensor) -> Tensor:
        product = self._product(x_TI)
        return (product if self._bias is None else product.add_(self._bias)).to(x_TI.dtype)

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        return self(x_TI).add_(other_TO)

    def _product(self, x_TI: Tensor) -> Tensor:
        """(T, out), float32. A row that is not finite gives NaN by its scale."""
        num_rows, num_inputs = x_TI.shape
        quantized, scale = _quantized(x_TI)
        more_rows = max(FEWEST_ROWS - num_rows, -num_rows % MULTIPLE)
        padded = pad(quantized, (0, self._weight.shape[1] - num_inputs, 0, more_rows))
        sums = torch._int_mm(padded, self._weight.T)[:num_rows, : len(self._scale)]
        return sums.float().mul_(scale).mul_(self._scale)


class Int8MatrixGated:
    """Gate and up share the rows' scales, and so are one product."""

    __slots__ = ("_both",)

    def __init__(self, gate_OI: Tensor, gate_bias: Tensor | None, up_OI: Tensor, up_bias: Tensor | None) -> None:
        self._both = Int8MatrixLinear(torch.cat([gate_OI, up_OI]), joined_bias(gate_OI, gate_bias, up_OI, up_bias))

    @property
    def num_bytes(self) -> int:
        return self._both.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        gate, up = self.parts(x_TI)
        return silu(gate).mul_(up)

    def parts(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = self._both(x_TI).chunk(2, dim=1)
        return gate, up


def _quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8, and each row's scale, (rows, 1) in float32."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_min_(SMALLEST).div_(LEVELS)
    return (rows / scale).round_().nan_to_num_(0.0, LEVELS, -LEVELS).to(torch.int8), scale


def int8_matrix_linears(dtype: torch.dtype) -> Linears:
    """`dtype` is what norms, biases and a value head's one row stay in."""
    return Linears(Int8MatrixLinear, Int8MatrixGated, Int8MatrixLinear, partial(int8_matrix_bytes, dtype.itemsize))


def int8_matrix_bytes(item_bytes: int, shape: tuple[int, ...]) -> int:
    """One byte a number, both sides rounded up to the kernel's multiple, and a scale for each output."""
    if len(shape) != 2 or shape[0] == 1:
        return prod(shape) * item_bytes
    outputs, inputs = shape
    return (outputs + -outputs % MULTIPLE) * (inputs + -inputs % MULTIPLE) + 4 * outputs
