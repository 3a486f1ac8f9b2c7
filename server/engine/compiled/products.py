"""Rows times packed weights. A row's sums run over its inputs in order, whatever rows are beside it."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from polyhead.server.engine.compiled.amx import amx_rows, begin_tiles, end_tiles
from polyhead.server.engine.compiled.jobs import ADD, GATED, PANELS
from polyhead.server.engine.compiled.lanes import load, load_first, load_ints_less, silu, splat, store, store_first
from polyhead.server.engine.compiled.machine import (
    HAS_AMX,
    LANES,
    PANEL,
    WEIGHT_OFFSET,
    barrier,
    floats,
    ints,
    thin_rows,
    wide_int8_rows,
    wide_rows,
)
from polyhead.server.engine.compiled.rows import norm, quantise, spread

_int8_rows = amx_rows if HAS_AMX else wide_int8_rows


@njit
def product(job, matrix, num_rows, x, norm_weight, out, mode, eps, scratch, thread):
    """out = norm(x) @ weight.T + bias for float32 rows; the threads share first the rows, then the panels. Ends with all of them here."""
    if matrix.scales or norm_weight:
        _prepare(job, matrix, num_rows, x, norm_weight, eps, thread)
        barrier()
        x = job.rows
    num_panels = (matrix.num_out + PANEL - 1) // PANEL
    if matrix.scales:
        begin_tiles()
    for panel in range(num_panels * thread // job.num_threads, num_panels * (thread + 1) // job.num_threads):
        if matrix.scales:
            _int8_panel(job, matrix, panel, num_rows, x, out, mode, scratch)
        else:
            _panel(matrix, panel, num_rows, x, out, mode, scratch)
    if matrix.scales:
        end_tiles()
    barrier()


@njit
def _prepare(job, matrix, num_rows, x, norm_weight, eps, thread):
    """This thread's rows, normed and, for int8, spread and quantised."""
    width = matrix.num_in
    padded = (width + 3) // 4 * 4
    for row in range(num_rows * thread // job.num_threads, num_rows * (thread + 1) // job.num_threads):
        source = x + row * width * 4
        if norm_weight:
            target = job.rows + (num_rows * padded + row * width * 4 if matrix.scales else row * width * 4)
            norm(source, norm_weight, target, width, eps)
            source = target
        if matrix.scales:
            target = job.rows + num_rows * padded + row * width * 4
            spread(source, target, width)
            quantise(target, job.rows + row * padded, width, padded, job.row_scales, job.row_sums, row)


@njit
def _int8_panel(job, matrix, panel, num_rows, rows, out, mode, scratch):
    num_steps = (matrix.num_in + 3) // 4
    weight = matrix.weight + panel * num_steps * 4 * PANEL
    scales = matrix.scales + panel * PANEL * 4
    low, high = load(scales), load(scales + LANES * 4)
    row_scales, row_sums = floats(job.row_scales), ints(job.row_sums)
    done = 0
    while done < num_rows:
        some = _int8_rows(num_rows - done, rows + done * num_steps * 4, num_steps * 4, 4, weight, 0, num_steps, scratch)
        for row in range(some):
            offset, row_scale = np.int32(row_sums[done + row] * np.int32(WEIGHT_OFFSET)), splat(row_scales[done + row])
            at = scratch + row * PANEL * 4
            store(at, load_ints_less(at, offset) * row_scale * low)
            store(at + LANES * 4, load_ints_less(at + LANES * 4, offset) * row_scale * high)
        _finish(matrix, panel, done, some, out, mode, scratch)
        done += some


@njit
def _panel(matrix, panel, num_rows, rows, out, mode, scratch):
    stride = matrix.num_in * 4
    weight = matrix.weight + panel * stride * PANEL
    done = 0
    while done < num_rows:
        some = wide_rows(num_rows - done, rows + done * stride, stride, 4, weight, 0, matrix.num_in, scratch)
        _finish(matrix, panel, done, some, out, mode, scratch)
        done += some


@njit
def _finish(matrix, panel, first_row, num_rows, out, mode, scratch):
    """A tile's sums to where they belong."""
    width = min(PANEL, matrix.num_out - panel * PANEL)
    for row in range(num_rows):
        at = scratch + row * PANEL * 4
        first, second = load(at), load(at + LANES * 4)
        if matrix.bias:
            biases = matrix.bias + panel * PANEL * 4
            first, second = first + load(biases), second + load(biases + LANES * 4)
        if mode == GATED:
            target = out + ((first_row + row) * (matrix.num_out // 2) + panel * LANES) * 4
            store_first(target, silu(first) * second, width // 2)
            continue
        if mode == PANELS:
            target, width = out + ((first_row + row) * ((matrix.num_out + PANEL - 1) // PANEL) + panel) * PANEL * 4, PANEL
        else:
            target = out + ((first_row + row) * matrix.num_out + panel * PANEL) * 4
        if mode == ADD:
            first = first + load_first(target, width)
            second = second + load_first(target + LANES * 4, width - LANES)
        store_first(target, first, width)
        store_first(target + LANES * 4, second, width - LANES)


@njit
def shared_product(job, matrix, thread, scratch):
    """x @ weight.T with a float32 weight as it lies, (out, in): the weight's rows stand where other products have the batch's.

    The batch's rows are laid out across the lanes of panels first. Nobody pays for a second copy of the weight.
    """
    num_rows, num_in, num_out = job.num_rows, matrix.num_in, matrix.num_out
    num_panels = (num_rows + LANES - 1) // LANES
    for panel in range(num_panels * thread // job.num_threads, num_panels * (thread + 1) // job.num_threads):
        _across_lanes(job, panel, num_in)
    barrier()
    sums = floats(scratch)
    first, last = num_out * thread // job.num_threads, num_out * (thread + 1) // job.num_threads
    while first < last:
        some = 0
        for panel in range(num_panels):
            packed = job.rows + panel * num_in * LANES * 4
            some = thin_rows(last - first, matrix.weight + first * num_in * 4, num_in * 4, 4, packed, 0, num_in, scratch)
            for lane in range(min(LANES, num_rows - panel * LANES)):
                target = floats(job.out + ((panel * LANES + lane) * num_out + first) * 4)
                for i in range(some):
                    target[i] = sums[i * LANES + lane]
        first += some
    barrier()


@njit
def _across_lanes(job, panel, num_in):
    target = floats(job.rows + panel * num_in * LANES * 4)
    for lane in range(LANES):
        row = panel * LANES + lane
        if row < job.num_rows:
            source = floats(job.x + row * num_in * 4)
            for i in range(num_in):
                target[i * LANES + lane] = source[i]
        else:
            for i in range(num_in):
                target[i * LANES + lane] = np.float32(0)
