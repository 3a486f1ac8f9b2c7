"""A weight's rows to panels: PANEL of them side by side, step after step. Of int8 a step is four numbers, as unsigned bytes."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import register_jitable

from polyhead.server.engine.compiled.lanes import (
    constant,
    load_first,
    rounded,
    splat,
    store_bytes_first,
)
from polyhead.server.engine.compiled.machine import LANES, PANEL, WEIGHT_OFFSET, bytes_at, floats, ints
from polyhead.server.engine.compiled.rows import SMALLEST, absmax, spread

WEIGHT_LEVELS = np.float32(127)  # of one sign


@njit
def pack(job, thread):
    """This thread's panels of `num_rows` rows, `stripe` to a panel. With `row_scales` in int8, spread, a scale for each row.

    Rows that the last panel lacks are zeros.
    """
    num_steps = (job.width + 3) // 4 if job.row_scales else job.width
    num_panels = (job.num_rows + job.stripe - 1) // job.stripe
    room = job.rows + thread * packing_bytes(job.width)
    target = ints(job.out)
    for panel in range(num_panels * thread // job.num_threads, num_panels * (thread + 1) // job.num_threads):
        for lane in range(job.stripe):
            row = panel * job.stripe + lane
            source = job.x + row * job.width * 4 if row < job.num_rows else 0
            if job.row_scales:
                floats(job.row_scales)[panel * PANEL + lane] = _quantise(source, room, job.width)
                source = room
            place = panel * num_steps * PANEL + lane
            for step in range(num_steps):
                target[place + step * PANEL] = ints(source)[step] if source else np.int32(0)


@register_jitable
def packing_bytes(width):
    """Of each thread: a row as bytes, then spread."""
    return (width + 3) // 4 * 4 + width * 4


@njit
def _quantise(source, out, width):
    """One row, or zeros if there is none, to whole steps of unsigned bytes. Returns its scale, NaN if a number is not finite."""
    padded = (width + 3) // 4 * 4
    row = out + padded
    scale = np.float32(SMALLEST) / WEIGHT_LEVELS
    if source:
        spread(source, row, width)
        largest, trouble = absmax(row, width)
        scale = largest / WEIGHT_LEVELS + trouble
    has_levels = source != 0 and scale == scale
    for i in range(0, width, LANES):
        levels = rounded(load_first(row + i * 4, width - i) / splat(scale)) if has_levels else constant(0.0)
        store_bytes_first(out + i, levels + constant(WEIGHT_OFFSET), width - i)
    for i in range(width, padded):
        bytes_at(out)[i] = np.int8(-WEIGHT_OFFSET)
    return scale
