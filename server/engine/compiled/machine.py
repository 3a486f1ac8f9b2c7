"""What LLVM is asked for by name: tiles of vector products, numbers at an address, and the threads of a region.

LANES numbers stand side by side in a vector; a panel of packed weights is two vectors wide.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = {name for name, is_there in llvm.get_host_cpu_features().items() if is_there}


def _ask_for_tiles() -> bool:
    """Of Linux, on x86-64, since a thread's registers grow by 8 KiB: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). Returns whether
    it gave them."""
    return bool(ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0)


HAS_VNNI = "avx512vnni" in _FEATURES
HAS_AVX512 = "avx512bw" in _FEATURES
HAS_AVX2 = "avx2" in _FEATURES
HAS_HALVES = "f16c" in _FEATURES  # float16 numbers are read and written; all computing is done in float32
HAS_TILES = HAS_VNNI and "amx-int8" in _FEATURES
HAS_AMX = HAS_TILES and _ask_for_tiles()

LANES = 16 if HAS_AVX512 else 8  # 32-bit numbers in a vector
VECTOR_BYTES = 4 * LANES
PANEL = 2 * LANES  # outputs of a weight that stand side by side
TILE_ROWS = 12 if HAS_AVX512 else 4  # of a two-vector tile: as many sums as the registers hold
THIN_ROWS = 16 if HAS_AVX512 else 8  # of a one-vector tile
# Of one sign. The instructions before VNNI add two products in 16 bits, which eight-bit activations overflow.
ACTIVATION_LEVELS = 127 if HAS_VNNI or not HAS_AVX2 else 63
WEIGHT_OFFSET = 128  # weights are held as weight + 128, unsigned, as those instructions want one of their factors

_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32, _F64 = ir.FloatType(), ir.DoubleType()


def _vector(kind: ir.Type, lanes: int = LANES) -> ir.VectorType:
    return ir.VectorType(kind, lanes)


def call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    """One of LLVM's own functions."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [each.type for each in arguments]), name)
    return builder.call(function, arguments)


def broadcast(builder: Any, scalar: Any) -> Any:
    """The same number in every lane."""
    empty = ir.Constant(_vector(scalar.type), ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(_vector(_I32), [0] * LANES))


def _load(builder: Any, kind: ir.Type, address: Any, align: int) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _multiply_add(builder: Any, total: Any, weights: Any, row: Any) -> Any:
    """total + weights * row, rounded once."""
    return call(builder, f"llvm.fma.v{LANES}f32", total.type, weights, row, total)


def _dot4_add(builder: Any, total: Any, weights: Any, row: Any) -> Any:
    """Adds the four products of unsigned and signed bytes in each 32-bit lane. Exact."""
    bytes_ = _vector(_I8, 4 * LANES)
    weights, row = builder.bitcast(weights, bytes_), builder.bitcast(row, bytes_)
    if HAS_VNNI:
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, weights, row)
    if HAS_AVX2:
        halves, ones = _vector(_I16, 2 * LANES), ir.Constant(_vector(_I16, 2 * LANES), [1] * (2 * LANES))
        names = ("avx512.pmaddubs.w.512", "avx512.pmaddw.d.512") if HAS_AVX512 else ("avx2.pmadd.ub.sw", "avx2.pmadd.wd")
        pairs = call(builder, f"llvm.x86.{names[0]}", halves, weights, row)
        return builder.add(total, call(builder, f"llvm.x86.{names[1]}", total.type, pairs, ones))
    wide = _vector(_I32, 4 * LANES)
    products = builder.mul(builder.zext(weights, wide), builder.sext(row, wide))
    for part in range(4):
        places = ir.Constant(_vector(_I32), [4 * lane + part for lane in range(LANES)])
        total = builder.add(total, builder.shuffle_vector(products, ir.Constant(wide, ir.Undefined), places))
    return total


def prefetch(builder: Any, address: Any) -> None:
    """Into the second cache."""
    call(builder, "llvm.prefetch.p0", ir.VoidType(), builder.inttoptr(address, _I8.as_pointer()), _I32(0), _I32(2), _I32(1))


def _tile(
    num_rows: int, num_vectors: int, *, is_int8: bool = False, adds: bool = False, strided: bool = False, fetches: bool = False
) -> Callable[..., None]:
    """A loop over one tile: its sums stay in registers.

    out[r, :] = sum over steps of panel[step, :] * a[r, step]; with `adds`, added to what `out` holds. Addresses and strides in bytes. The
    panel's steps follow each other, or, if it is `strided`, as its stride says. With `fetches` the next panel, which begins where this one
    ends, comes from memory meanwhile.
    """
    item, add = (_I32, _dot4_add) if is_int8 else (_F32, _multiply_add)
    vector = _vector(item)
    cells = [(row, column) for row in range(num_rows) for column in range(num_vectors)]

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(_: Any, a: Any, row_stride: Any, step_stride: Any, panel: Any, panel_stride: Any, num_steps: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            a, row_stride, step_stride, panel, panel_stride, num_steps, out = arguments
            panel_stride = panel_stride if strided else _I64(num_vectors * VECTOR_BYTES)
            panel_bytes = builder.mul(num_steps, panel_stride)
            places = {(row, column): builder.add(out, _I64((row * num_vectors + column) * VECTOR_BYTES)) for row, column in cells}
            zero = ir.Constant(vector, [0] * LANES)
            sums = {cell: cgutils.alloca_once_value(builder, _load(builder, vector, places[cell], 4) if adds else zero) for cell in cells}
            with cgutils.for_range(builder, num_steps) as loop:
                weights_at = builder.add(panel, builder.mul(loop.index, panel_stride))
                weights = [_load(builder, vector, builder.add(weights_at, _I64(column * VECTOR_BYTES)), 4) for column in range(num_vectors)]
                for column in range(num_vectors if fetches else 0):
                    prefetch(builder, builder.add(builder.add(weights_at, panel_bytes), _I64(column * VECTOR_BYTES)))
                numbers_at = builder.add(a, builder.mul(loop.index, step_stride))
                for row in range(num_rows):
                    number_at = builder.add(numbers_at, builder.mul(row_stride, _I64(row)))
                    number = broadcast(builder, _load(builder, item, number_at, 1 if is_int8 else 4))
                    for column in range(num_vectors):
                        total = add(builder, builder.load(sums[row, column]), weights[column], number)
                        builder.store(total, sums[row, column])
            for cell, place in places.items():
                builder.store(builder.load(sums[cell]), builder.inttoptr(place, vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile  # type: ignore[no-any-return]


@intrinsic  # type: ignore[untyped-decorator]
def floats(_: Any, address: Any) -> Any:
    """float32 numbers at an address."""
    return types.CPointer(types.float32)(types.int64), lambda _context, builder, _sig, args: builder.inttoptr(args[0], _F32.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def doubles(_: Any, address: Any) -> Any:
    """float64 numbers at an address."""
    return types.CPointer(types.float64)(types.int64), lambda _context, builder, _sig, args: builder.inttoptr(args[0], _F64.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def ints(_: Any, address: Any) -> Any:
    """int32 numbers at an address."""
    return types.CPointer(types.int32)(types.int64), lambda _context, builder, _sig, args: builder.inttoptr(args[0], _I32.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def longs(_: Any, address: Any) -> Any:
    """int64 numbers at an address."""
    return types.CPointer(types.int64)(types.int64), lambda _context, builder, _sig, args: builder.inttoptr(args[0], _I64.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def bytes_at(_: Any, address: Any) -> Any:
    """int8 numbers at an address."""
    return types.CPointer(types.int8)(types.int64), lambda _context, builder, _sig, args: builder.inttoptr(args[0], _I8.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def memory(_: Any, address: Any) -> Any:
    """An address as `numba.carray` takes it."""
    return types.voidptr(types.int64), lambda _context, builder, _sig, args: builder.inttoptr(args[0], _I8.as_pointer())


barrier = types.ExternalFunction("GOMP_barrier", types.void())  # waits until all threads of the region are here
thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
team_size = types.ExternalFunction("omp_get_num_threads", types.int32())


_WIDE_SIZES, _THIN_SIZES, _FEW_SIZES = (12, 8, 4, 2, 1), (16, 8, 4, 2, 1), (8, 4, 3, 2, 1)  # rows of a tile


def _rows_of_tiles(sizes: tuple[int, ...], most_rows: int, num_vectors: int, **kind: bool) -> Callable[..., int]:
    """As many rows as one tile takes of those that are left; returns how many. A row's sums are the same in every size of tile."""
    first, second, third, fourth, one = (_tile(size, num_vectors, **kind) for size in sizes)
    num_first, num_second, num_third, num_fourth, _ = sizes

    @njit(inline="never")  # type: ignore[untyped-decorator]
    def some_rows(num_left: int, a: int, row_stride: int, step_stride: int, panel: int, panel_stride: int, num_steps: int, out: int) -> int:
        if most_rows >= num_first and num_left >= num_first:
            first(a, row_stride, step_stride, panel, panel_stride, num_steps, out)
            return num_first
        if most_rows >= num_second and num_left >= num_second:
            second(a, row_stride, step_stride, panel, panel_stride, num_steps, out)
            return num_second
        if num_left >= num_third:
            third(a, row_stride, step_stride, panel, panel_stride, num_steps, out)
            return num_third
        if num_left >= num_fourth:
            fourth(a, row_stride, step_stride, panel, panel_stride, num_steps, out)
            return num_fourth
        one(a, row_stride, step_stride, panel, panel_stride, num_steps, out)
        return 1

    return some_rows  # type: ignore[no-any-return]


# Each: (rows left, a, row stride, step stride, panel, its stride, steps, out) -> rows done. One step of int8 is four numbers.
wide_rows = _rows_of_tiles(_WIDE_SIZES, TILE_ROWS, 2, fetches=True)  # PANEL outputs of float32
wide_int8_rows = _rows_of_tiles(_WIDE_SIZES, TILE_ROWS, 2, is_int8=True, fetches=True)  # PANEL outputs of int8, int32 sums
thin_rows = _rows_of_tiles(_THIN_SIZES, THIN_ROWS, 1)  # LANES outputs of float32
thin_rows_more = _rows_of_tiles(_THIN_SIZES, THIN_ROWS, 1, adds=True)  # the same, added to what is there
few_rows = _rows_of_tiles(_FEW_SIZES, 8, 1, strided=True)  # the same as these, of a panel whose steps lie apart
few_rows_more = _rows_of_tiles(_FEW_SIZES, 8, 1, strided=True, adds=True)
