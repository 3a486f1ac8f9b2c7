"""Launches of fused_kernels.py, on CUDA where triton is there; plain_rows.py computes the same in torch's calls.

Each is tried on small rows before it serves (fused_probe.py), and falls back to torch's calls, with a line of the log, if it fails then or
later: a compiler or driver may not take a size of the model that it was not tried with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from polyhead.server.engine.layers.cuda import plain_rows
from polyhead.server.engine.layers.cuda.plain_rows import EightBits, Scales, Turning
from polyhead.server.engine.layers.cuda.threads import is_recording
from polyhead.server.engine.layers.hadamard import BLOCK, matrix

R = TypeVar("R")
COLUMNS = 1024  # of a program that works on a part of a row
LARGEST_ROW = 32768  # numbers that one program holds

logger = logging.getLogger(__name__)


class Fused:
    """The kernels, those that have not failed. Results are new tensors, unless they say otherwise."""

    def __init__(self) -> None:
        self.failed: set[str] = set()

    def silu_up(self, both: Tensor) -> Tensor:
        """silu(gate) * up of (T, 2 * width)."""
        return self._either("silu x up", lambda: _silu_up(both), lambda: plain_rows.silu_up(both))

    def add_norm(self, x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """x += added, in place; its root-mean-square norm."""
        return self._either("add and norm", lambda: _add_norm(x, added, weight, eps), lambda: plain_rows.add_norm(x, added, weight, eps))

    def turn(self, qkv: Tensor, turning: Turning) -> None:
        """Rotate queries in place, and write rotated keys and values to the cache."""
        self._either("rope and cache", lambda: _turn(qkv, turning), lambda: plain_rows.turn(qkv, turning))

    def quantized(self, rows: Tensor, form: EightBits, num_rows: int, width: int) -> tuple[Tensor, Tensor]:
        """(num_rows, width) in 8 bits and (num_rows,) scales; zeros beyond the rows and columns that are given."""
        given = rows, form, num_rows, width
        return self._either(f"quantise {form.name}", lambda: _quantized(*given), lambda: plain_rows.quantized(*given))

    def descaled(
        self, sums: Tensor, scales: Scales, out_dtype: torch.dtype, added: Tensor | None = None, *, is_gated: bool = False
    ) -> Tensor:
        """Products with their scales, in `out_dtype`; `added` to them, or gate and up made one."""
        given = sums, scales, out_dtype, added
        return self._either("descale", lambda: _descaled(*given, is_gated), lambda: plain_rows.descaled(*given, is_gated=is_gated))

    def _either(self, name: str, kernel: Callable[[], R], plain: Callable[[], R]) -> R:
        if name in self.failed:
            return plain()
        try:
            return kernel()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of Triton's compiler or launcher: not one class
            if is_recording():
                raise  # the kernel has just run in the trial: it is the recording that fails, and graphs.py gives that up
            self.failed.add(name)
            logger.warning("the GPU kernel %s is not used: %s", name, (str(error) or repr(error)).splitlines()[0])
            return plain()


# ---- the kernels


def _silu_up(both: Tensor) -> Tensor:
    from polyhead.server.engine.layers.cuda.fused_kernels import silu_up_kernel  # triton comes with torch's CUDA builds alone

    num_rows, width = len(both), both.shape[1] // 2
    out = both.new_empty(num_rows, width)
    silu_up_kernel[(num_rows, -(-width // COLUMNS))](both, out, width, both.stride(0), out.stride(0), BLOCK=COLUMNS, num_warps=4)
    return out


def _add_norm(x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    from polyhead.server.engine.layers.cuda.fused_kernels import add_norm_kernel

    num_rows, width = x.shape
    _check_row(width)
    out = torch.empty_like(x)
    other = x if added is None else added
    add_norm_kernel[(num_rows,)](
        x, other, weight, out, width, eps, x.stride(0), other.stride(0), out.stride(0),
        BLOCK=_power_of_two(width), HAS_ADDED=added is not None, num_warps=8,
    )  # fmt: skip
    return out


def _turn(qkv: Tensor, turning: Turning) -> None:
    from polyhead.server.engine.layers.cuda.fused_kernels import turn_kernel

    _, _, num_kv_heads, head_dim = turning.cache.shape
    num_all = turning.num_heads + 2 * num_kv_heads
    assert turning.cache.is_contiguous()
    assert qkv.shape[1] == num_all * head_dim
    assert qkv.stride(1) == 1
    rotations = torch.view_as_real(turning.rotations)
    (query, query_eps), (key, key_eps) = (turning.norms.query, turning.norms.key) if turning.norms else ((qkv, 0.0), (qkv, 0.0))
    turn_kernel[(len(qkv), num_all)](
        qkv, rotations, turning.write_rows, turning.cache, query, key, query_eps, key_eps,
        qkv.stride(0), turning.cache.stride(0), turning.num_heads, num_kv_heads,
        HEAD_DIM=head_dim, HALF=_power_of_two(head_dim // 2), HAS_NORMS=turning.norms is not None, num_warps=1,
    )  # fmt: skip


def _quantized(rows: Tensor, form: EightBits, num_rows: int, width: int) -> tuple[Tensor, Tensor]:
    from polyhead.server.engine.layers.cuda.fused_kernels import quantize_kernel

    _check_row(width)
    out = torch.empty(num_rows, width, dtype=form.dtype, device=rows.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=rows.device)
    spread_by = matrix(rows.device, rows.dtype) if form.is_spread else rows
    is_integer = not form.dtype.is_floating_point
    quantize_kernel[(num_rows,)](
        rows, out if is_integer else out.view(torch.uint8), scales, spread_by,
        len(rows), rows.shape[1], width, rows.stride(0), out.stride(0), float(form.largest),
        GROUPS=max(16, _power_of_two(-(-width // BLOCK))), IS_SPREAD=form.is_spread, IS_INTEGER=is_integer,
        num_warps=8,
    )  # fmt: skip
    return out, scales


def _descaled(sums: Tensor, scales: Scales, out_dtype: torch.dtype, added: Tensor | None, is_gated: bool) -> Tensor:
    from polyhead.server.engine.layers.cuda.fused_kernels import descale_kernel

    width = len(scales.columns) // (2 if is_gated else 1)
    out = torch.empty(len(sums), width, dtype=out_dtype, device=sums.device)
    other, bias = sums if added is None else added, sums if scales.bias is None else scales.bias
    descale_kernel[(len(sums), -(-width // COLUMNS))](
        sums, scales.rows, scales.columns, bias, other, out, width, sums.stride(0), other.stride(0), out.stride(0),
        BLOCK=COLUMNS, HAS_BIAS=scales.bias is not None, HAS_ADDED=added is not None, IS_GATED=is_gated, num_warps=4,
    )  # fmt: skip
    return out


def _check_row(width: int) -> None:
    if width > LARGEST_ROW:
        raise ValueError(f"a row of {width} numbers is more than one program holds: {LARGEST_ROW}")


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


