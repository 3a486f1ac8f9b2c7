"""Packs weights for products.py: PANEL outputs side by side, input after input. The packed weight replaces the original."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from polyhead.server.engine.compiled.jobs import JOB, MATRIX, SPREAD
from polyhead.server.engine.compiled.machine import LANES, PANEL, WEIGHT_OFFSET
from polyhead.server.engine.compiled.region import region

WEIGHT_LEVELS = 127  # of one sign
SMALLEST = 1e-30  # a row of zeros is divided by this
PACKED_AT_ONCE = 4  # panels: what is made on the way stays in the processor's cache


class Matrix:
    """A weight (out, in) with its bias, in float32 or int8 with a scale for each output."""

    __slots__ = ("_bias", "_scales", "_weight", "num_bytes", "num_in", "num_out", "record")

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None, *, is_int8: bool, num_out: int = 0) -> None:
        """`num_out`: outputs that count, if rows were added on the way (`gated`)."""
        self.num_out, self.num_in = num_out or weight_OI.shape[0], weight_OI.shape[1]
        num_panels = -(-len(weight_OI) // PANEL)
        self._scales = torch.empty(num_panels, PANEL) if is_int8 else None
        num_steps, dtype = (-(-self.num_in // 4), torch.int32) if is_int8 else (self.num_in, torch.float32)
        self._weight = torch.empty(num_panels, num_steps, PANEL, dtype=dtype)
        for first in range(0, num_panels, PACKED_AT_ONCE):
            some = slice(first, min(first + PACKED_AT_ONCE, num_panels))
            rows = weight_OI[some.start * PANEL : some.stop * PANEL].float()
            rows = pad(rows, (0, 0, 0, -len(rows) % PANEL))
            if self._scales is not None:
                rows, self._scales[some] = _steps_of_four(rows)
            self._weight[some] = rows.view(-1, PANEL, num_steps).transpose(1, 2)
        self._bias = None if bias is None else pad(bias.float(), (0, -len(bias) % PANEL))
        self.record = matrix_record(self._weight, self._scales, self._bias, self.num_in, self.num_out)
        self.num_bytes = packed_bytes((self.num_out, self.num_in), is_int8=is_int8) + (0 if bias is None else 4 * self.num_out)

    @property
    def num_panels(self) -> int:
        return -(-self.num_out // PANEL)

    @classmethod
    def gated(cls, gate_OI: Tensor, gate_bias: Tensor | None, up_OI: Tensor, up_bias: Tensor | None, *, is_int8: bool) -> Matrix:
        """Gate and up in one: the first half of each panel is the gate's."""
        bias = None
        if gate_bias is not None or up_bias is not None:
            zeros = gate_OI.new_zeros(len(gate_OI))
            columns = (zeros if each is None else each for each in (gate_bias, up_bias))
            bias = _interleaved(*(each[:, None] for each in columns))[:, 0]
        return cls(_interleaved(gate_OI, up_OI), bias, is_int8=is_int8, num_out=2 * len(gate_OI))


def _steps_of_four(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whole panels of rows, spread, as unsigned bytes, four to a number, zeros after the last; and a scale for each row."""
    rows = spread(rows)
    scales = rows.abs().amax(dim=1).clamp_min_(SMALLEST).div_(WEIGHT_LEVELS)
    levels = pad((rows / scales[:, None]).round_().to(torch.int8), (0, -rows.shape[1] % 4))
    return levels.view(torch.uint8).add_(WEIGHT_OFFSET).view(torch.int32), scales.view(-1, PANEL)  # a byte's sum wraps around


def spread(rows: Tensor) -> Tensor:
    """As the rows that they are multiplied with (hadamard.py)."""
    rows = rows.contiguous()
    out = torch.empty_like(rows)
    job = np.zeros(1, JOB)
    job["kind"], job["num_rows"], job["width"], job["x"], job["out"] = SPREAD, *rows.shape, rows.data_ptr(), out.data_ptr()
    region().run(job)
    return out


def matrix_record(weight: Tensor, scales: Tensor | None, bias: Tensor | None, num_in: int, num_out: int) -> np.ndarray:
    """(1,) MATRIX. The tensors must outlive it."""
    addresses = (0 if each is None else each.data_ptr() for each in (weight, scales, bias))
    return np.array([(*addresses, num_in, num_out)], dtype=MATRIX)


def split_halves(panels_TO: Tensor) -> tuple[Tensor, Tensor]:
    """A gated matrix's product, panel by panel, as gate and up: each (T, inner width, rounded up to whole vectors)."""
    halves = panels_TO.view(len(panels_TO), -1, 2, LANES)
    gate, up = (halves[:, :, half].reshape(len(panels_TO), -1) for half in (0, 1))
    return gate, up


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    """LANES rows of each in turn, each padded with zeros to whole vectors."""
    halves = [pad(each, (0, 0, 0, -len(each) % LANES)).view(-1, LANES, each.shape[1]) for each in (first, second)]
    return torch.stack(halves, dim=1).view(-1, first.shape[1])


def packed_bytes(shape: tuple[int, ...], *, is_int8: bool) -> int:
    """Of one tensor of a head file as it is held, but for what rounds it up to whole panels: nothing at the sizes of real models.

    In int8 a scale for each output; norms and a value head's one row stay in float32.
    """
    if is_int8 and len(shape) == 2 and shape[0] > 1:
        return prod(shape) + 4 * shape[0]
    return prod(shape) * 4
