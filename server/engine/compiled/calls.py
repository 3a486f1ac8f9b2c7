"""One part of a layer at a time, called like torch's functions: for adapters, which change what is in between, and for heads' outputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polyhead.server.engine.compiled.jobs import GATE, JOB, NORM, PRODUCT, SCRATCH_BYTES, SHARED_PRODUCT, STORE
from polyhead.server.engine.compiled.machine import LANES
from polyhead.server.engine.compiled.matrices import Matrix, matrix_record
from polyhead.server.engine.compiled.region import Job, region, scratch


class CompiledLinear:
    """x @ weight.T + bias of a packed weight, (T, in) -> (T, out)."""

    def __init__(self, weight_OI: Tensor, bias: Tensor | None = None, *, is_int8: bool) -> None:
        self._matrix = Matrix(weight_OI, bias, is_int8=is_int8)
        self.num_bytes = self._matrix.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        return product(self._matrix, x_TI)


class SharedLinear:
    """Of a float32 weight that others read as well, as it lies. Takes nothing of its own."""

    num_bytes = 0

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight = weight_OI.contiguous()
        self._record = matrix_record(self._weight, None, None, self._weight.shape[1], len(self._weight))

    def __call__(self, x_TI: Tensor) -> Tensor:
        x_TI = x_TI.contiguous()
        out = x_TI.new_empty(len(x_TI), len(self._weight))
        job = _job(SHARED_PRODUCT, x_TI, out)
        job["matrices"] = self._record.ctypes.data
        region().run(job)
        return out


class CompiledNorm:
    """Root-mean-square norm of rows."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps

    def __call__(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD.contiguous()
        out = torch.empty_like(x_TD)
        job = _job(NORM, x_TD, out)
        job["norm"], job["eps"] = self.weight.data_ptr(), self.eps
        region().run(job)
        return out


def product(matrix: Matrix, x_TI: Tensor, mode: int = STORE, width: int = 0) -> Tensor:
    """(T, in) -> (T, width), by default the matrix's outputs as they are; `mode` as in jobs.py."""
    x_TI = x_TI.contiguous()
    out = x_TI.new_empty(len(x_TI), width or matrix.num_out)
    job = _job(PRODUCT, x_TI, out)
    job["mode"], job["matrices"] = mode, matrix.record.ctypes.data
    region().run(job)
    return out


def gate(gates_TI: Tensor, ups_TI: Tensor) -> Tensor:
    """silu(gates) * ups, in place of the gates. Contiguous, and as wide as whole vectors."""
    assert gates_TI.shape[1] % LANES == 0, "whole vectors"
    region().run(_job(GATE, gates_TI, ups_TI))
    return gates_TI


def _job(kind: int, x_TI: Tensor, out: Tensor) -> Job:
    """With room for the rows of x as a product prepares them: int8 and float32, or across the lanes."""
    num_rows, width = x_TI.shape
    job = np.zeros(1, JOB)
    addresses = scratch.addresses(
        [SCRATCH_BYTES * torch.get_num_threads(), (num_rows + LANES) * prepared_bytes(width), num_rows * 4, num_rows * 4]
    )
    for name, address in zip(("scratch", "rows", "row_scales", "row_sums"), addresses, strict=True):
        job[name] = address
    job["kind"], job["num_rows"], job["width"], job["num_asked"] = kind, num_rows, width, -1
    job["x"], job["out"] = x_TI.data_ptr(), out.data_ptr()
    return job


def prepared_bytes(width: int) -> int:
    """Of one row, normed in float32 and then as int8 with up to three zeros."""
    return width * 5 + 3
