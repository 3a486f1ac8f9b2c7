"""Each way to hold weights against the plain product; the ones that promise it give a row the same bits in any company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from polyhead.server.engine.dense import dense_kit
from polyhead.server.engine.int8 import ACTIVATION_LEVELS, INT8, INT8_TILED
from polyhead.server.engine.int8_matrix import int8_matrix_kit
from polyhead.server.engine.linears import FLOAT32, TILED, Kit

DENSE, MATRIX = dense_kit(torch.float32), int8_matrix_kit(torch.float32)
KITS = {
    "float32": (FLOAT32, 1e-5),
    "tiled": (TILED, 1e-5),
    "dense": (DENSE, 1e-5),
    "int8": (INT8, 0.03),
    "int8 tiled": (INT8_TILED, 0.03),
    "int8 matrix": (MATRIX, 0.03),
}
INVARIANT = {"tiled": TILED, "int8": INT8, "int8 tiled": INT8_TILED, "int8 matrix": MATRIX}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, wanted: Tensor, share: float) -> None:
    assert found.shape == wanted.shape
    if wanted.numel():
        assert float((found - wanted).norm() / wanted.norm()) < share


@pytest.mark.parametrize("num_rows", [0, 1, 5, 16, 33])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", KITS)
def test_products(name: str, has_bias: bool, num_rows: int) -> None:
    kit, share = KITS[name]
    weight, up, x = random(48, 64, seed=1), random(48, 64, seed=2), random(num_rows, 64, seed=3)
    bias = random(48, seed=4) if has_bias else None
    packed, gated = kit.linear(weight, bias), kit.gated(weight, bias, up, None)
    wanted, other = linear(x, weight, bias), random(num_rows, 48, seed=5)
    assert_close(packed(x), wanted, share)
    assert_close(packed.add_to(x, other), other + wanted, share)
    gate_part, up_part = gated.parts(x)
    assert_close(gate_part, wanted, share)
    assert_close(up_part, linear(x, up), share)
    assert_close(gated(x), silu(wanted) * linear(x, up), 2 * share)
    assert_close(kit.by_rows(lambda rows: linear(rows, weight), x), linear(x, weight), 1e-5)


@pytest.mark.parametrize("name", INVARIANT)
def test_a_row_is_the_same_in_any_company(name: str) -> None:
    """SmolLM2's sizes; rows far larger and far smaller than each other."""
    kit: Kit = INVARIANT[name]
    x = random(70, 576) * torch.logspace(-3, 3, 70)[:, None]
    weight = random(1536, 576, seed=1)
    products = (kit.linear(weight, None), kit.gated(weight, None, random(1536, 576, seed=2), None), kit.unpacked(weight))
    for product in products:
        together = product(x)
        for first, last in ((0, 1), (69, 70), (3, 5), (10, 17), (20, 36), (1, 68)):
            assert torch.equal(product(x[first:last].clone()), together[first:last])
        assert torch.equal(product(x.flip(0)).flip(0), together)


def test_any_size_fits_the_integer_kernel() -> None:
    """Its sizes are multiples of 8; a vocabulary need not be."""
    weight, x = random(45, 66, seed=1), random(3, 66, seed=2)
    assert_close(MATRIX.linear(weight, None)(x), linear(x, weight), 0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_rows_comes_out(dtype: torch.dtype) -> None:
    weight, x = random(48, 64, seed=1).to(dtype), random(5, 64, seed=2).to(dtype)
    for kit in (dense_kit(dtype), int8_matrix_kit(dtype)):
        for product in (kit.linear(weight, weight[:, 0].clone()), kit.gated(weight, None, weight, None), kit.unpacked(weight)):
            assert product(x).dtype == dtype


@pytest.mark.parametrize("kit", [INT8, MATRIX], ids=["int8", "int8 matrix"])
def test_int8_has_a_scale_per_row(kit: Kit) -> None:
    """With one scale for the batch, a row a million times smaller than its neighbour would come out as zero."""
    weight, x = random(32, 64, seed=1), random(2, 64, seed=2)
    x[0] *= 1e6
    found, wanted = kit.linear(weight, None)(x), linear(x, weight)
    for row in range(2):
        assert_close(found[row], wanted[row], 0.03)
    assert not kit.linear(weight, None)(torch.zeros(3, 64)).any()
    assert ACTIVATION_LEVELS in (63, 127)


@pytest.mark.parametrize("kit", [INT8, MATRIX], ids=["int8", "int8 matrix"])
def test_int8_does_not_saturate(kit: Kit) -> None:
    """The largest sums that fit: every product of one sign."""
    ones = torch.ones(8, 512)
    assert kit.linear(ones, None)(ones) == pytest.approx(torch.full((8, 8), 512.0), rel=1e-5)


@pytest.mark.parametrize("kit", [INT8, MATRIX], ids=["int8", "int8 matrix"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_int8_shows_a_row_that_is_not_finite(bad: float, kit: Kit) -> None:
    x = random(3, 64)
    x[1, 7] = bad
    found = kit.linear(random(32, 64, seed=1), None)(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize(("kit", "share"), [(FLOAT32, 1.0), (DENSE, 1.0), (INT8, 0.4), (MATRIX, 0.4)])
def test_bytes_are_known_before_the_weights_are_there(kit: Kit, share: float) -> None:
    shapes = ((48, 64), (32, 64), (45, 66))
    held = [kit.linear(random(*shape), None) for shape in shapes]
    for linear_, shape in zip(held, shapes, strict=True):
        assert linear_.num_bytes == kit.weight_bytes(shape)
        assert kit.weight_bytes(shape) <= share * 4 * shape[0] * shape[1]
    assert kit.weight_bytes((64,)) == 4 * 64, "norms stay float32"
