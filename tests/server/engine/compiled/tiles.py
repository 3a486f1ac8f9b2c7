"""What a tile of each kind computes, against numpy. Imports no torch: a process of its own runs it in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyhead.server.engine.compiled import machine
from polyhead.server.engine.compiled.machine import ACTIVATION_LEVELS, LANES, PANEL

NUM_ROWS, NUM_STEPS = 33, 21  # every size of tile has its turn
WIDTHS = {"wide_rows": PANEL, "thin_rows": LANES, "thin_rows_more": LANES, "few_rows": LANES, "few_rows_more": LANES}


def products(rows: Any, numbers: np.ndarray, panel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """As many tiles as all rows take. `numbers` (rows, steps) and `panel` (steps, outputs) in steps of 32 bits."""
    out, done = before.copy(), 0
    while done < len(out):
        at, place = numbers.ctypes.data + done * numbers.strides[0], out.ctypes.data + done * out.strides[0]
        done += rows(len(out) - done, at, *numbers.strides[:2], panel.ctypes.data, panel.strides[0], panel.shape[0], place)
    return out


def check_float32() -> None:
    """numpy's numbers, added to what was there where the tile says so; a row is the same bit for bit in any company."""
    random = np.random.default_rng(0)
    numbers = random.standard_normal((NUM_ROWS, NUM_STEPS), np.float32)
    for name, width in WIDTHS.items():
        rows, panel = getattr(machine, name), random.standard_normal((NUM_STEPS, width), np.float32)
        before = random.standard_normal((NUM_ROWS, width), np.float32)
        found = products(rows, numbers, panel, before)
        wanted = numbers.astype(np.float64) @ panel + (before if name.endswith("more") else 0.0)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
        for first in (1, 9, 20, 32):
            assert np.array_equal(products(rows, numbers[first:], panel, before[first:]), found[first:]), name


def check_int8() -> None:
    """Exact, the largest sums that fit included: what this processor's instructions take in is all that it is given."""
    random = np.random.default_rng(0)
    numbers = random.integers(-ACTIVATION_LEVELS, ACTIVATION_LEVELS + 1, (NUM_ROWS, NUM_STEPS, 4)).astype(np.int8)
    weights = random.integers(1, 256, (NUM_STEPS, PANEL, 4)).astype(np.uint8)
    numbers[0], numbers[1], weights[:, 0] = ACTIVATION_LEVELS, -ACTIVATION_LEVELS, 255
    wanted = np.einsum("rsi,sni->rn", numbers.astype(np.int64), weights.astype(np.int64))
    before = np.zeros((NUM_ROWS, PANEL), np.int32)
    found = products(machine.wide_int8_rows, numbers.view(np.int32)[:, :, 0], weights.view(np.int32)[:, :, 0], before)
    assert np.array_equal(found, wanted)


if __name__ == "__main__":
    check_float32()
    check_int8()
