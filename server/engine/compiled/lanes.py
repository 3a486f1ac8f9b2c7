"""A vector of LANES float32 numbers as a type of its own, so that no compiler has to guess which loops are vectors.

    a = load(address); b = splat(2.0); store(address, a * b + a)
"""

# mypy: ignore-errors

from __future__ import annotations

import operator

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import intrinsic, models, register_model

from polyhead.server.engine.compiled.machine import HAS_HALVES, LANES, broadcast, call
from polyhead.server.engine.layers.hadamard import BLOCK

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _BITS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)


class LanesType(types.Type):
    """LANES float32 numbers."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


LANES_TYPE = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, of_type):
        super().__init__(manager, of_type, _VECTOR)


def _operation(symbol, instruction):
    """`a symbol b` on vectors."""

    @infer_global(symbol)
    class _Template(ConcreteTemplate):
        key = symbol
        cases = [LANES_TYPE(LANES_TYPE, LANES_TYPE)]  # noqa: RUF012

    @lower_builtin(symbol, LANES_TYPE, LANES_TYPE)
    def _lower(context, builder, signature, arguments):
        return getattr(builder, instruction)(*arguments)


for _symbol, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _operation(_symbol, _instruction)


def _address(builder, address):
    return builder.inttoptr(address, _VECTOR.as_pointer())


@intrinsic
def load(_, address):
    """The vector at an address, float32."""
    return LANES_TYPE(types.int64), lambda context, builder, signature, args: builder.load(_address(builder, args[0]), align=4)


def _mask(builder, count):
    """The lanes before `count`."""
    counts = broadcast(builder, builder.trunc(count, _I32))
    return builder.icmp_signed("<", ir.Constant(_BITS, list(range(LANES))), counts)


@intrinsic
def load_first(_, address, count):
    """The vector at an address as far as `count` numbers go, zeros after them."""

    def generate(context, builder, signature, args):
        name, zeros = f"llvm.masked.load.v{LANES}f32.p0", ir.Constant(_VECTOR, [0.0] * LANES)
        return call(builder, name, _VECTOR, _address(builder, args[0]), _mask(builder, args[1]), zeros)

    return LANES_TYPE(types.int64, types.int64), generate


@intrinsic
def store_first(_, address, vector, count):
    """To an address, as far as `count` numbers go."""

    def generate(context, builder, signature, args):
        name = f"llvm.masked.store.v{LANES}f32.p0"
        call(builder, name, ir.VoidType(), args[1], _address(builder, args[0]), _mask(builder, args[2]))
        return context.get_dummy_value()

    return types.void(types.int64, LANES_TYPE, types.int64), generate


@intrinsic
def store_bytes_first(_, address, vector, count):
    """Whole numbers to int8 at an address, as far as `count` goes."""

    def generate(context, builder, signature, args):
        small = ir.VectorType(ir.IntType(8), LANES)
        numbers = builder.trunc(builder.fptosi(args[1], _BITS), small)
        place = builder.inttoptr(args[0], small.as_pointer())
        call(builder, f"llvm.masked.store.v{LANES}i8.p0", ir.VoidType(), numbers, place, _mask(builder, args[2]))
        return context.get_dummy_value()

    return types.void(types.int64, LANES_TYPE, types.int64), generate


@intrinsic
def load_halves(_, address):
    """The float16 vector at an address."""

    def generate(context, builder, signature, args):
        if not HAS_HALVES:  # nobody keeps any, and LLVM would look for a function that converts them
            return ir.Constant(_VECTOR, [0.0] * LANES)
        halves = builder.load(builder.inttoptr(args[0], _HALVES.as_pointer()), align=2)
        return builder.fpext(halves, _VECTOR)

    return LANES_TYPE(types.int64), generate


@intrinsic
def store_halves_first(_, address, vector, count):
    """To an address in float16, as far as `count` numbers go."""

    def generate(context, builder, signature, args):
        if not HAS_HALVES:
            return context.get_dummy_value()
        small = ir.VectorType(ir.IntType(16), LANES)
        numbers = builder.bitcast(builder.fptrunc(args[1], _HALVES), small)
        place = builder.inttoptr(args[0], small.as_pointer())
        call(builder, f"llvm.masked.store.v{LANES}i16.p0", ir.VoidType(), numbers, place, _mask(builder, args[2]))
        return context.get_dummy_value()

    return types.void(types.int64, LANES_TYPE, types.int64), generate


@intrinsic
def store_half(_, address, number):
    """One number to an address in float16."""

    def generate(context, builder, signature, args):
        if HAS_HALVES:
            builder.store(builder.fptrunc(args[1], ir.HalfType()), builder.inttoptr(args[0], ir.HalfType().as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


def _unary(name):
    """`llvm.<name>`, lane by lane."""

    @intrinsic
    def operation(_, vector):
        def generate(context, builder, signature, args):
            return call(builder, f"llvm.{name}.v{LANES}f32", _VECTOR, args[0])

        return LANES_TYPE(LANES_TYPE), generate

    return operation


absolute, rounded = _unary("fabs"), _unary("rint")


@intrinsic
def swapped_pairs(_, vector):
    """Lanes 0 and 1 for each other, 2 and 3, and so on."""
    places = ir.Constant(_BITS, [lane ^ 1 for lane in range(LANES)])
    return LANES_TYPE(LANES_TYPE), lambda context, builder, signature, args: builder.shuffle_vector(args[0], args[0], places)


@intrinsic
def spread_block(_, source, target):
    """BLOCK numbers from one address to another, times the Hadamard matrix of that size: first among the vectors, then in each of them."""

    def generate(context, builder, signature, args):
        def places(start):
            return [_address(builder, builder.add(start, ir.Constant(_I64, at * 4))) for at in range(0, BLOCK, LANES)]

        vectors = [builder.load(place, align=4) for place in places(args[0])]
        distance = 1
        while distance < len(vectors):
            pairs = [(at, at + distance) for at in range(len(vectors)) if not at & distance]
            for at, other in pairs:
                first, second = vectors[at], vectors[other]
                vectors[at], vectors[other] = builder.fadd(first, second), builder.fsub(first, second)
            distance *= 2
        scale = ir.Constant(_VECTOR, [BLOCK**-0.5] * LANES)
        for vector, place in zip(vectors, places(args[1]), strict=True):
            builder.store(builder.fmul(_lanes_spread(builder, vector), scale), place, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _lanes_spread(builder, vector):
    """A vector times the Hadamard matrix of LANES."""
    distance = 1
    while distance < LANES:
        other = builder.shuffle_vector(vector, vector, ir.Constant(_BITS, [lane ^ distance for lane in range(LANES)]))
        signs = ir.Constant(_VECTOR, [-1.0 if lane & distance else 1.0 for lane in range(LANES)])
        signed = builder.fmul(vector, signs, flags=("contract",))
        vector = builder.fadd(other, signed, flags=("contract",))
        distance *= 2
    return vector


def _folded(fold):
    """All lanes to one number, half by half."""

    @intrinsic
    def operation(_, vector):
        def generate(context, builder, signature, args):
            vector, width = args[0], LANES
            while width > 1:
                width //= 2
                other = builder.shuffle_vector(vector, vector, ir.Constant(_BITS, [(lane + width) % LANES for lane in range(LANES)]))
                vector = fold(builder, vector, other)
            return builder.extract_element(vector, ir.Constant(_I32, 0))

        return types.float32(LANES_TYPE), generate

    return operation


total = _folded(lambda builder, a, b: builder.fadd(a, b))
largest_of = _folded(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@intrinsic
def load_ints_less(_, address, offset):
    """The vector at an address, int32, less an int32, as float32."""

    def generate(context, builder, signature, args):
        numbers = builder.load(builder.inttoptr(args[0], _BITS.as_pointer()), align=4)
        return builder.sitofp(builder.sub(numbers, broadcast(builder, args[1])), _VECTOR)

    return LANES_TYPE(types.int64, types.int32), generate


@intrinsic
def store(_, address, vector):
    """To an address."""

    def generate(context, builder, signature, args):
        builder.store(args[1], _address(builder, args[0]), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, LANES_TYPE), generate


@intrinsic
def splat(_, number):
    """The same number in every lane."""
    return LANES_TYPE(types.float32), lambda context, builder, signature, args: broadcast(builder, args[0])


@intrinsic
def where_less(_, a, b, then, otherwise):
    """Lane by lane: `then` where a < b, else `otherwise`; also where one is NaN."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return LANES_TYPE(*[LANES_TYPE] * 4), generate


@intrinsic
def differs(_, a, b):
    """Whether any lane of a is not equal to b's."""

    def generate(context, builder, signature, args):
        mask = builder.fcmp_unordered("!=", args[0], args[1])
        return builder.icmp_unsigned("!=", builder.bitcast(mask, ir.IntType(LANES)), ir.IntType(LANES)(0))

    return types.boolean(LANES_TYPE, LANES_TYPE), generate


@intrinsic
def _fused(_, a, b, c):
    """a * b + c, rounded once."""

    def generate(context, builder, signature, args):
        return call(builder, f"llvm.fma.v{LANES}f32", _VECTOR, *args)

    return LANES_TYPE(*[LANES_TYPE] * 3), generate


@intrinsic
def _power_of_two(_, shifted):
    """2^n, where n stands in the last bits of a number to which 1.5 * 2^23 was added."""

    def generate(context, builder, signature, args):
        bits = builder.shl(builder.bitcast(args[0], _BITS), ir.Constant(_BITS, [23] * LANES))
        return builder.bitcast(builder.add(bits, ir.Constant(_BITS, [0x3F800000] * LANES)), _VECTOR)

    return LANES_TYPE(LANES_TYPE), generate


@intrinsic
def numbered(_):
    """0 in the first lane, 1 in the next, and so on."""
    numbers = ir.Constant(_VECTOR, [float(lane) for lane in range(LANES)])
    return LANES_TYPE(), lambda context, builder, signature, args: numbers


@njit
def constant(number):
    return splat(types.float32(number))


@njit
def exp(x):
    """e^x, within 2 units in the last place; 0 below -87 and infinite above 88, where the result would leave float32. NaN stays NaN.

    2^n times a polynomial on [-ln 2 / 2, ln 2 / 2], fitted at Chebyshev points.
    """
    bounded = where_less(constant(88.0), x, constant(88.0), x)
    shifted = _fused(bounded, constant(1.4426950408889634), constant(12582912.0))
    n = shifted - constant(12582912.0)
    r = _fused(n, constant(0.00021219444005469057), _fused(n, constant(-0.693359375), bounded))
    p = _fused(constant(0.0013933646259829402), r, constant(0.008363175205886364))
    p = _fused(p, r, constant(0.04166646674275398))
    p = _fused(p, r, constant(0.16666576266288757))
    p = _fused(p, r, constant(0.5))
    p = _fused(p * r, r, r) + constant(1.0)
    bounded_above = where_less(constant(88.0), x, constant(np.inf), p * _power_of_two(shifted))
    return where_less(x, constant(-87.0), constant(0.0), bounded_above)


@njit
def silu(x):
    return x / (constant(1.0) + exp(constant(0.0) - x))
