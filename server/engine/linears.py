"""Matrix products with frozen weights, packed once for the kernel that runs them. The packed weight replaces the original.

Products of a few rows are bound by reading the weight; oneDNN reads its own layout up to twice as fast as MKL reads rows (BENCHMARKS.md).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

PACKED_FOR_ROWS = 512  # a hint: oneDNN chooses the layout for products of this many rows


class UnpackedLinear:
    """x @ weight.T for a weight that others read as it lies: oneDNN's kernel without its layout."""

    __slots__ = ("_weight",)

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight = weight_OI

    def __call__(self, x_TI: Tensor) -> Tensor:
        """(T, out)."""
        if not len(x_TI):
            return x_TI.new_empty(0, len(self._weight))
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_TI, self._weight, None, "none", [], ""))


class PackedLinear:
    """x @ weight.T + bias in float32 on the CPU, with what follows it fused in."""

    __slots__ = ("_bias", "_num_rows", "_weight", "num_bytes")

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None) -> None:
        assert weight_OI.dtype == torch.float32
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, PACKED_FOR_ROWS)
        self._bias = bias
        self._num_rows = len(weight_OI)
        self.num_bytes = weight_OI.numel() * 4 + (0 if bias is None else bias.numel() * 4)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """(T, out)."""
        if not len(x_TI):
            return x_TI.new_empty(0, self._num_rows)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_TI, self._weight, self._bias, "none", [], ""))

    def silu(self, x_TI: Tensor) -> Tensor:
        """silu of the product."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_TI, self._weight, self._bias, "swish", [], ""))

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        """other + product."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x_TI, other_TO, self._weight, self._bias, "add"))

    def times(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        """other * product."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x_TI, other_TO, self._weight, self._bias, "mul"))
