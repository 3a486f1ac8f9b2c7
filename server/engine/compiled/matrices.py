"""Weights as products.py reads them: PANEL outputs side by side, input after input. The packed weight replaces the original."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from polyhead.server.engine.compiled.jobs import JOB, MATRIX, PACK
from polyhead.server.engine.compiled.machine import LANES, PANEL
from polyhead.server.engine.compiled.packing import packing_bytes
from polyhead.server.engine.compiled.region import region, scratch
from polyhead.server.engine.layers.llama import Weight

PACKED_AT_ONCE = 32  # panels: of a weight in 16 bits never more than these are in float32


class Matrix:
    """A weight (out, in) with its bias, in float32 or int8 with a scale for each output."""

    __slots__ = ("_bias", "_scales", "_weight", "num_bytes", "num_in", "num_out", "record")

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None, *, is_int8: bool, beside: Weight | None = None) -> None:
        """`beside`: a second weight of the same shape. The first half of each panel is then the first one's: gate and up in one product."""
        parts = [(weight_OI, bias)] if beside is None else [(weight_OI, bias), beside]
        stripe = PANEL // len(parts)
        self.num_out, self.num_in = len(weight_OI) * len(parts), weight_OI.shape[1]
        num_panels = -(-len(weight_OI) // stripe)
        self._scales = torch.empty(num_panels, PANEL) if is_int8 else None
        num_steps, dtype = (-(-self.num_in // 4), torch.int32) if is_int8 else (self.num_in, torch.float32)
        self._weight = torch.empty(num_panels, num_steps, PANEL, dtype=dtype)
        for number, (part, _) in enumerate(parts):
            for first in range(0, num_panels, PACKED_AT_ONCE):
                rows = part[first * stripe : (first + PACKED_AT_ONCE) * stripe].float()
                scales = None if self._scales is None else self._scales[first:, number * stripe :]
                _pack(rows, self._weight[first:, :, number * stripe :], scales, stripe)
        self._bias = _side_by_side([each for _, each in parts], len(weight_OI), stripe)
        self.record = matrix_record(self._weight, self._scales, self._bias, self.num_in, self.num_out)
        self.num_bytes = packed_bytes((self.num_out, self.num_in), is_int8=is_int8) + (0 if self._bias is None else 4 * self.num_out)

    @property
    def num_panels(self) -> int:
        return -(-self.num_out // PANEL)


def _pack(rows: Tensor, panels: Tensor, scales: Tensor | None, stripe: int) -> None:
    """Rows of a weight, `stripe` of them to a panel, and in int8 their scales (packing.py)."""
    rows = rows.contiguous()
    job = np.zeros(1, JOB)
    job["kind"], job["num_rows"], job["width"], job["x"], job["out"] = PACK, *rows.shape, rows.data_ptr(), panels.data_ptr()
    job["stripe"], job["row_scales"] = stripe, 0 if scales is None else scales.data_ptr()
    (job["rows"],) = scratch.addresses([torch.get_num_threads() * packing_bytes(rows.shape[1])])
    region().run(job)


def _side_by_side(biases: list[Tensor | None], length: int, stripe: int) -> Tensor | None:
    """(panels * PANEL,): biases of the weights in a panel, zeros where there are none."""
    if all(bias is None for bias in biases):
        return None
    columns = [torch.zeros(length) if bias is None else bias.float() for bias in biases]
    return torch.stack([pad(column, (0, -length % stripe)).view(-1, stripe) for column in columns], dim=1).flatten()


def matrix_record(weight: Tensor, scales: Tensor | None, bias: Tensor | None, num_in: int, num_out: int) -> np.ndarray:
    """(1,) MATRIX. The tensors must outlive it."""
    addresses = (0 if each is None else each.data_ptr() for each in (weight, scales, bias))
    return np.array([(*addresses, num_in, num_out)], dtype=MATRIX)


def split_halves(panels_TO: Tensor) -> tuple[Tensor, Tensor]:
    """A gated matrix's product, panel by panel, as gate and up: each (T, inner width, rounded up to whole vectors)."""
    halves = panels_TO.view(len(panels_TO), -1, 2, LANES)
    gate, up = (halves[:, :, half].reshape(len(panels_TO), -1) for half in (0, 1))
    return gate, up


def packed_bytes(shape: tuple[int, ...], *, is_int8: bool) -> int:
    """Of one tensor of a head file as it is held, but for what rounds it up to whole panels: nothing at the sizes of real models.

    In int8 a scale for each output; norms and a value head's one row stay in float32.
    """
    if is_int8 and len(shape) == 2 and shape[0] > 1:
        return prod(shape) + 4 * shape[0]
    return prod(shape) * 4
