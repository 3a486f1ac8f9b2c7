"""Tiles of int8 products on processors that multiply whole matrices (Intel's AMX): sixteen rows by sixteen outputs in one instruction.

Sums of whole numbers are exact, so they are those of the other tiles. A few rows wait for their weights either way and stay with those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from polyhead.server.engine.compiled.machine import HAS_AMX, VECTOR_BYTES, call, prefetch, wide_int8_rows

FEWEST_ROWS = 9  # below these the other tiles are as fast
_SIDE = 16  # rows of a tile, 32-bit numbers in each
_ROW_BYTES = 4 * _SIDE  # of a tile
_PANEL_ROW_BYTES = 2 * VECTOR_BYTES
_CHUNK_BYTES = _SIDE * _PANEL_ROW_BYTES  # of a panel: the steps of one instruction
_ACTIVATIONS, _WEIGHTS = 4, 6  # the first of two registers each; sums are in the first four

_I8, _I64, _VOID = ir.IntType(8), ir.IntType(64), ir.VoidType()


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I8.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def begin_tiles(_: Any) -> Any:
    """This thread's tile registers have sixteen rows of 64 bytes each from now on. Nothing where there are none."""

    def generate(context: Any, builder: Any, *_: Any) -> Any:
        if not HAS_AMX:  # LLVM ends the process over an instruction that the processor lacks, reached or not
            return context.get_dummy_value()
        widths, heights = b"".join(_ROW_BYTES.to_bytes(2, "little") for _ in range(8)), bytes([_SIDE] * 8)
        palette = bytes([1]) + bytes(15) + widths + bytes(16) + heights + bytes(8)
        place = cgutils.global_constant(builder.module, "polyhead_tiles", cgutils.make_bytearray(palette))
        call(builder, "llvm.x86.ldtilecfg", _VOID, builder.bitcast(place, _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def end_tiles(_: Any) -> Any:
    """The registers are free: a switch to another thread need not save them."""

    def generate(context: Any, builder: Any, *_: Any) -> Any:
        if HAS_AMX:
            call(builder, "llvm.x86.tilerelease", _VOID)
        return context.get_dummy_value()

    return types.void(), generate


def _tiles(num_tiles: int) -> Callable[..., None]:
    """16 * num_tiles rows of signed bytes by a panel of unsigned ones. The next panel comes from memory meanwhile."""
    sums = [(row, column) for row in range(num_tiles) for column in range(2)]

    @intrinsic  # type: ignore[untyped-decorator]
    def tiles(_: Any, a: Any, row_stride: Any, panel: Any, num_chunks: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            a, row_stride, panel, num_chunks, out = arguments

            def load_tile(register: int, address: Any, stride: Any) -> None:
                call(builder, "llvm.x86.tileloadd64", _VOID, _I8(register), _pointer(builder, address), stride)

            for register in range(len(sums)):
                call(builder, "llvm.x86.tilezero", _VOID, _I8(register))
            panel_bytes = builder.mul(num_chunks, _I64(_CHUNK_BYTES))
            with cgutils.for_range(builder, num_chunks) as loop:
                weights_at = builder.add(panel, builder.mul(loop.index, _I64(_CHUNK_BYTES)))
                rows_at = builder.add(a, builder.mul(loop.index, _I64(_ROW_BYTES)))
                for column in range(2):
                    load_tile(_WEIGHTS + column, builder.add(weights_at, _I64(column * _ROW_BYTES)), _I64(_PANEL_ROW_BYTES))
                for line in range(0, _CHUNK_BYTES, _ROW_BYTES):
                    prefetch(builder, builder.add(builder.add(weights_at, panel_bytes), _I64(line)))
                for row in range(num_tiles):
                    load_tile(_ACTIVATIONS + row, builder.add(rows_at, builder.mul(row_stride, _I64(row * _SIDE))), row_stride)
                    for column in range(2):
                        factors = _I8(_ACTIVATIONS + row), _I8(_WEIGHTS + column)
                        call(builder, "llvm.x86.tdpbsud", _VOID, _I8(2 * row + column), *factors)
            for register, (row, column) in enumerate(sums):
                place = builder.add(out, _I64(row * _SIDE * _PANEL_ROW_BYTES + column * _ROW_BYTES))
                call(builder, "llvm.x86.tilestored64", _VOID, _I8(register), _pointer(builder, place), _I64(_PANEL_ROW_BYTES))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return tiles  # type: ignore[no-any-return]


_one_tile, _two_tiles = _tiles(1), _tiles(2)


@njit(inline="never")  # type: ignore[untyped-decorator]
def amx_rows(num_left: int, a: int, row_stride: int, step_stride: int, panel: int, panel_stride: int, num_steps: int, out: int) -> int:
    """As `wide_int8_rows`, between `begin_tiles` and `end_tiles`. Reads up to fifteen rows past the last, whatever stands there."""
    if num_left < FEWEST_ROWS or num_steps % _SIDE:
        return wide_int8_rows(num_left, a, row_stride, step_stride, panel, panel_stride, num_steps, out)
    if num_left > _SIDE:
        _two_tiles(a, row_stride, panel, num_steps // _SIDE, out)
        return min(num_left, 2 * _SIDE)
    _one_tile(a, row_stride, panel, num_steps // _SIDE, out)
    return num_left
