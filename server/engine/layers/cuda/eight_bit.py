"""Weights in 8 bits on CUDA: by torch's own products of int8 or of fp8, which tensor cores compute.

Each weight has a scale per output and each row of activations its own, so that rows do not depend on each other. The numbers are
multiplied without their scales, which are applied afterwards, in float32: integer sums are exact, and the fp8 product without a scale for
each row is the one that every GPU and library supports. Sides are padded to multiples that the kernel takes. One byte a weight is read;
weights dequantised first would be read, written and read again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad, silu

from polyhead.server.engine.layers.hadamard import spread
from polyhead.server.engine.layers.linears import Linears, Quantization
from polyhead.server.engine.layers.torch.dense import joined_bias

SMALLEST = 1e-30  # a row of zeros is divided by this
FP8_CAPABILITY = (8, 9)  # of a GPU whose tensor cores know fp8: Ada, Hopper and later


@dataclass(frozen=True, slots=True)
class Format:
    """Numbers of 8 bits, and how torch multiplies them."""

    dtype: torch.dtype
    largest: float  # what the largest number of a row becomes
    multiple: int  # of inputs and outputs
    row_multiple: int
    fewest_rows: int
    is_spread: bool  # ../hadamard.py
    product: Callable[[Tensor, Tensor], Tensor]  # (T, in) and (in, out), without scales

    def quantized(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers, and each row's scale, (rows, 1) in float32. A row that is not finite has a scale that is not."""
        rows = spread(rows) if self.is_spread else rows
        scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_min_(SMALLEST).div_(self.largest)
        scaled = rows / scale
        if not self.dtype.is_floating_point:
            scaled.round_()
        return scaled.nan_to_num_(0.0, self.largest, -self.largest).to(self.dtype), scale


def _fp8_product(rows_TI: Tensor, weight_IO: Tensor) -> Tensor:
    """Sums in float32 throughout: a decode step waits for memory, and no faster way to add up would show."""
    one = _one(rows_TI.device)
    return torch._scaled_mm(rows_TI, weight_IO, scale_a=one, scale_b=one, out_dtype=torch.float32)


@cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


INT8 = Format(torch.int8, 127, 8, 8, 32, is_spread=True, product=torch._int_mm)  # cuBLASLt takes more than 16 rows
FP8 = Format(torch.float8_e4m3fn, 448, 16, 1, 1, is_spread=False, product=_fp8_product)
FORMATS: dict[Quantization, Format] = {"int8": INT8, "fp8": FP8}


class EightBitLinear:
    """Any float dtype in and the same out."""

    __slots__ = ("_bias", "_format", "_scale", "_weight", "num_bytes")

    def __init__(self, form: Format, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        quantized, scale = form.quantized(weight_OI)
        outputs, inputs = weight_OI.shape
        self._format = form
        self._weight = _padded(quantized, -outputs % form.multiple, -inputs % form.multiple)
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
        form, (num_rows, num_inputs) = self._format, x_TI.shape
        quantized, scale = form.quantized(x_TI)
        more_rows = max(form.fewest_rows - num_rows, -num_rows % form.row_multiple)
        padded = _padded(quantized, more_rows, self._weight.shape[1] - num_inputs)
        sums = form.product(padded, self._weight.T)[:num_rows, : len(self._scale)]
        return sums.float().mul_(scale).mul_(self._scale)


class EightBitGated:
    """Gate and up share the rows' scales, and so are one product."""

    __slots__ = ("_both",)

    def __init__(self, form: Format, gate_OI: Tensor, gate_bias: Tensor | None, up_OI: Tensor, up_bias: Tensor | None) -> None:
        self._both = EightBitLinear(form, torch.cat([gate_OI, up_OI]), joined_bias(gate_OI, gate_bias, up_OI, up_bias))

    @property
    def num_bytes(self) -> int:
        return self._both.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        gate, up = self.parts(x_TI)
        return silu(gate).mul_(up)

    def parts(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = self._both(x_TI).chunk(2, dim=1)
        return gate, up


def eight_bit_linears(form: Format, dtype: torch.dtype) -> Linears:
    """`dtype` is what norms, biases and a value head's one row stay in."""
    linear, gated = partial(EightBitLinear, form), partial(EightBitGated, form)
    return Linears(linear, gated, linear, partial(_weight_bytes, form.multiple, dtype.itemsize))


def has_fp8(device: torch.device) -> bool:
    """Whether its tensor cores know fp8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def _weight_bytes(multiple: int, item_bytes: int, shape: tuple[int, ...]) -> int:
    """One byte a number, both sides rounded up to the kernel's multiple, and a scale for each output."""
    if len(shape) != 2 or shape[0] == 1:
        return prod(shape) * item_bytes
    outputs, inputs = shape
    return (outputs + -outputs % multiple) * (inputs + -inputs % multiple) + 4 * outputs


def _padded(numbers: Tensor, more_rows: int, more_columns: int) -> Tensor:
    """With zeros; itself if there is nothing to add."""
    return pad(numbers, (0, more_columns, 0, more_rows)) if more_rows or more_columns else numbers
