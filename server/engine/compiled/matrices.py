"""Packs weights for products.py: PANEL outputs side by side, input after input. The packed weight replaces the original."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from polyhead.server.engine.compiled.jobs import MATRIX
from polyhead.server.engine.compiled.machine import LANES, PANEL, WEIGHT_OFFSET

WEIGHT_LEVELS = 127  # of one sign
SMALLEST = 1e-30  # a row of zeros is divided by this


class Matrix:
    """A weight (out, in) with its bias, in float32 or int8 with a scale for each output."""

    __slots__ = ("_bias", "_scales", "_weight", "num_bytes", "num_in", "num_out", "record")

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None, *, is_int8: bool, num_out: int = 0) -> None:
        """`num_out`: outputs that count, if rows were added on the way (`gated`)."""
        self.num_out, self.num_in = num_out or weight_OI.shape[0], weight_OI.shape[1]
        self._scales = None
        weight = pad(weight_OI.float(), (0, 0, 0, -len(weight_OI) % PANEL))
        if is_int8:
            scales = weight.abs().amax(dim=1).clamp_min_(SMALLEST) / WEIGHT_LEVELS
            levels = torch.round(weight / scales[:, None]).to(torch.int16)
            padded = pad(levels, (0, -self.num_in % 4)).add_(WEIGHT_OFFSET).to(torch.uint8)
            self._weight = padded.view(-1, PANEL, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()
            self._scales = scales
        else:
            self._weight = weight.view(-1, PANEL, self.num_in).transpose(1, 2).contiguous()
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
