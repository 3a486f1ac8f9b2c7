"""Weights in 8 bits on CUDA: by torch's own products of int8 or of fp8, which tensor cores compute.

Each weight has a scale per output and each row of activations its own, so that rows do not depend on each other. Where the product of fp8
takes both scales, it applies them; else numbers are multiplied without their scales, which are applied afterwards, in float32: integer sums
are exact. Sides are padded to multiples that the kernel takes. One byte a weight is read; weights dequantised first would be read, written
and read again. What stands around a product is one launch each where Triton is there (fused.py), else torch's calls (plain_rows.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from polyhead.server.engine.layers.cuda import plain_rows
from polyhead.server.engine.layers.cuda.fused import Fused
from polyhead.server.engine.layers.cuda.plain_rows import EightBits, Scales
from polyhead.server.engine.layers.linears import Linears, Quantization
from polyhead.server.engine.layers.torch.dense import joined_bias

FP8_CAPABILITY = (8, 9)  # of a GPU whose tensor cores know fp8: Ada, Hopper and later
ROW_WISE_ERROR = 0.05  # of the norm; fp8's own rounding makes 0.03

logger = logging.getLogger(__name__)


class RowWise(Protocol):
    """(T, in) and (in, out) in 8 bits, with the scales of rows (T, 1) and outputs (1, out): (T, out)."""

    def __call__(self, rows_TI: Tensor, weight_IO: Tensor, rows_T1: Tensor, outputs_1O: Tensor, dtype: torch.dtype, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Format:
    """Numbers of 8 bits, and how torch multiplies them."""

    bits: EightBits
    multiple: int  # of inputs and outputs
    row_multiple: int
    fewest_rows: int
    product: Callable[[Tensor, Tensor], Tensor]  # (T, in) and (in, out), without scales
    row_wise: RowWise | None = None  # with them


def _fp8_product(rows_TI: Tensor, weight_IO: Tensor) -> Tensor:
    """Sums in float32 throughout: a decode step waits for memory, and no faster way to add up would show."""
    one = _one(rows_TI.device)
    return torch._scaled_mm(rows_TI, weight_IO, scale_a=one, scale_b=one, out_dtype=torch.float32)


def _fp8_row_wise(rows_TI: Tensor, weight_IO: Tensor, rows_T1: Tensor, outputs_1O: Tensor, dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(rows_TI, weight_IO, scale_a=rows_T1, scale_b=outputs_1O, out_dtype=dtype)


@cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


INT8 = Format(plain_rows.INT8, 16, 8, 32, product=torch._int_mm)  # cuBLASLt takes more than 16 rows
FP8 = Format(plain_rows.FP8, 16, 1, 1, product=_fp8_product)
FORMATS: dict[Quantization, Format] = {"int8": INT8, "fp8": FP8}


class EightBitLinear:
    """Any float dtype in and the same out."""

    __slots__ = ("_bias", "_format", "_fused", "_outputs", "_scale", "_weight", "adds_for_free", "num_bytes")

    def __init__(self, form: Format, fused: Fused | None, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        outputs, inputs = weight_OI.shape
        quantized, scale = plain_rows.quantized(weight_OI, form.bits, outputs, inputs)
        more_outputs = -outputs % form.multiple
        self._format, self._fused, self._outputs = form, fused, outputs
        self._weight = _padded(quantized, more_outputs, -inputs % form.multiple)
        self._scale = pad(scale, (0, more_outputs))  # float32
        self._bias = bias
        self.adds_for_free = form.row_wise is None and fused is not None
        self.num_bytes = self._weight.nbytes + 4 * outputs + (0 if bias is None else bias.nbytes)

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self.product(x_TI)

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        return self.product(x_TI, other_TO)

    def product(self, x_TI: Tensor, other_TO: Tensor | None = None, *, is_gated: bool = False) -> Tensor:
        """Added to `other`, or with outputs that are gate and up made one. A row that is not finite gives NaN by its scale."""
        form, num_rows = self._format, len(x_TI)
        more_rows = max(form.fewest_rows - num_rows, -num_rows % form.row_multiple)
        ways = self._fused or plain_rows
        quantized, scale = ways.quantized(x_TI, form.bits, num_rows + more_rows, self._weight.shape[1])
        if form.row_wise is not None and num_rows:
            product = form.row_wise(quantized, self._weight.T, scale[:, None], self._scale[None], x_TI.dtype)
            return self._finished(product[:, : self._outputs], other_TO, is_gated)
        sums = form.product(quantized, self._weight.T)[:num_rows]
        return ways.descaled(sums, Scales(scale, self._scale[: self._outputs], self._bias), x_TI.dtype, other_TO, is_gated=is_gated)

    def _finished(self, product: Tensor, other_TO: Tensor | None, is_gated: bool) -> Tensor:
        """What comes behind scales that the product has applied itself."""
        product = product if self._bias is None else product.add_(self._bias)
        product = (self._fused or plain_rows).silu_up(product) if is_gated else product
        return product if other_TO is None else product.add_(other_TO)


class EightBitGated:
    """Gate and up share the rows' scales, and so are one product."""

    __slots__ = ("_both",)

    def __init__(
        self, form: Format, fused: Fused | None, gate_OI: Tensor, gate_bias: Tensor | None, up_OI: Tensor, up_bias: Tensor | None
    ) -> None:
        self._both = EightBitLinear(form, fused, torch.cat([gate_OI, up_OI]), joined_bias(gate_OI, gate_bias, up_OI, up_bias))

    @property
    def num_bytes(self) -> int:
        return self._both.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self._both.product(x_TI, is_gated=True)

    def parts(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = self._both(x_TI).chunk(2, dim=1)
        return gate, up


def eight_bit_linears(form: Format, dtype: torch.dtype, fused: Fused | None = None) -> Linears:
    """`dtype` is what norms, biases and a value head's one row stay in."""
    linear, gated = partial(EightBitLinear, form, fused), partial(EightBitGated, form, fused)
    return Linears(linear, gated, linear, partial(_weight_bytes, form.multiple, dtype.itemsize))


def format_for(quantization: Quantization, device: torch.device, dtype: torch.dtype) -> Format | None:
    """How these weights are multiplied on this device; None for weights as they are."""
    form = FORMATS.get(quantization)
    if form is FP8 and device.type == "cuda" and dtype == torch.bfloat16 and has_row_wise(device, dtype, _fp8_row_wise):
        return replace(FP8, row_wise=_fp8_row_wise)
    return form


@torch.inference_mode()
def has_row_wise(device: torch.device, dtype: torch.dtype, row_wise: RowWise) -> bool:
    """Whether fp8's product with a scale for each row works here: not every GPU and library has it."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(size, 64, generator=generator).to(device, dtype) for size in (5, 48))
    try:
        found = EightBitLinear(replace(FP8, row_wise=row_wise), None, weight)(rows)
    except Exception as error:  # of torch, or of the library beneath
        logger.warning("fp8 products apply no scales of rows: %s", (str(error) or repr(error)).splitlines()[0])
        return False
    wanted = rows.float() @ weight.float().T
    return float((found.float() - wanted).norm() / wanted.norm()) < ROW_WISE_ERROR


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
