"""Weights that torch multiplies, as they are, in int8 and in fp8, against the plain product. Compiled products: test_compiled.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from polyhead.server.engine.layers.cuda.eight_bit import FP8, INT8, eight_bit_linears
from polyhead.server.engine.layers.torch.dense import dense_linears

EIGHT_BIT = {"int8": eight_bit_linears(INT8, torch.float32), "fp8": eight_bit_linears(FP8, torch.float32)}
ERRORS = {"dense": 1e-5, "int8": 0.03, "fp8": 0.05}  # of the norm; fp8 has three bits behind its first
WAYS = {"dense": dense_linears(torch.float32), **EIGHT_BIT}

in_eight_bit = pytest.mark.parametrize("name", EIGHT_BIT)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, wanted: Tensor, share: float) -> None:
    assert found.shape == wanted.shape
    if wanted.numel():
        assert float((found - wanted).norm() / wanted.norm()) < share


@pytest.mark.parametrize("num_rows", [0, 1, 5, 16, 33])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_products(name: str, has_bias: bool, num_rows: int) -> None:
    linears, share = WAYS[name], ERRORS[name]
    weight, up, x = random(48, 64, seed=1), random(48, 64, seed=2), random(num_rows, 64, seed=3)
    bias = random(48, seed=4) if has_bias else None
    packed, gated = linears.linear(weight, bias), linears.gated(weight, bias, up, None)
    wanted, other = linear(x, weight, bias), random(num_rows, 48, seed=5)
    assert_close(packed(x), wanted, share)
    assert_close(packed.add_to(x, other), other + wanted, share)
    gate_part, up_part = gated.parts(x)
    assert_close(gate_part, wanted, share)
    assert_close(up_part, linear(x, up), share)
    assert_close(gated(x), silu(wanted) * linear(x, up), 2 * share)


def test_an_int8_row_is_the_same_in_any_company() -> None:
    """Integer sums are exact. SmolLM2's sizes; rows far larger and far smaller than each other."""
    x = random(70, 576) * torch.logspace(-3, 3, 70)[:, None]
    linears, weight = EIGHT_BIT["int8"], random(1536, 576, seed=1)
    for product in (linears.linear(weight, None), linears.gated(weight, None, random(1536, 576, seed=2), None), linears.shared(weight)):
        together = product(x)
        for first, last in ((0, 1), (69, 70), (3, 5), (10, 17), (20, 36), (1, 68)):
            assert torch.equal(product(x[first:last].clone()), together[first:last])
        assert torch.equal(product(x.flip(0)).flip(0), together)


@in_eight_bit
def test_any_size_fits_the_kernel(name: str) -> None:
    """Its sizes are multiples of 8 or 16; a vocabulary need not be."""
    weight, x = random(45, 66, seed=1), random(3, 66, seed=2)
    assert_close(EIGHT_BIT[name].linear(weight, None)(x), linear(x, weight), ERRORS[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_rows_comes_out(dtype: torch.dtype) -> None:
    weight, x = random(48, 64, seed=1).to(dtype), random(5, 64, seed=2).to(dtype)
    for linears in (dense_linears(dtype), eight_bit_linears(INT8, dtype), eight_bit_linears(FP8, dtype)):
        for product in (linears.linear(weight, weight[:, 0].clone()), linears.gated(weight, None, weight, None), linears.shared(weight)):
            assert product(x).dtype == dtype


@in_eight_bit
def test_each_row_has_its_scale(name: str) -> None:
    """With one scale for the batch, a row a million times smaller than its neighbour would come out as zero."""
    weight, x = random(32, 64, seed=1), random(2, 64, seed=2)
    x[0] *= 1e6
    product, wanted = EIGHT_BIT[name].linear(weight, None), linear(x, weight)
    for row, found in enumerate(product(x)):
        assert_close(found, wanted[row], ERRORS[name])
    assert not product(torch.zeros(3, 64)).any()


@in_eight_bit
def test_large_numbers_leave_the_others_their_levels(name: str) -> None:
    """A hundred times the others, as activations have them: with one scale a row, int8 would have a level or two for the others."""
    x, weight = random(16, 576, seed=1), random(96, 576, seed=2)
    x[:, ::97] *= 100
    weight[:, ::97] = 0
    assert_close(EIGHT_BIT[name].linear(weight, None)(x), linear(x, weight), 0.2)


@in_eight_bit
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_shows(bad: float, name: str) -> None:
    x = random(3, 64)
    x[1, 7] = bad
    found = EIGHT_BIT[name].linear(random(32, 64, seed=1), None)(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize(("name", "share"), [("dense", 1.0), ("int8", 0.4), ("fp8", 0.5)])
def test_bytes_are_known_before_the_weights_are_there(name: str, share: float) -> None:
    linears = WAYS[name]
    for shape in ((48, 64), (32, 64), (45, 66)):
        assert linears.linear(random(*shape), None).num_bytes == linears.weight_bytes(shape) <= share * 4 * shape[0] * shape[1]
    assert linears.weight_bytes((64,)) == 4 * 64, "norms stay float32"
