"""Compiled layers part by part, against torch's own arithmetic; every row the same bit for bit in any company.

On processors with fewer instructions than this one, other ones are chosen: each choice is tried in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, pad, rms_norm, scaled_dot_product_attention, silu

from polyhead.server.engine.blocks.cache import CacheShape, KvCache
from polyhead.server.engine.compiled import region as region_module
from polyhead.server.engine.compiled import sampler
from polyhead.server.engine.compiled.calls import CompiledLinear, CompiledNorm, SharedLinear, gate, product
from polyhead.server.engine.compiled.jobs import ATTEND, LAYER, PANELS
from polyhead.server.engine.compiled.machine import HAS_HALVES, LANES, PANEL
from polyhead.server.engine.compiled.matrices import Matrix, split_halves
from polyhead.server.engine.compiled.region import region
from polyhead.server.engine.compiled.stack import CompiledAttention, CompiledKit, CompiledStack
from polyhead.server.engine.layers.hadamard import spread
from polyhead.server.engine.layers.plan import Segment, StepPlan
from polyhead.server.engine.work.sampling import SamplingParams
from tests.server.engine.compiled.processors import OTHER_PROCESSORS, pretending, run_python
from tests.server.engine.layers import test_sampler

SHARES = {False: 5e-6, True: 0.03}  # of a product's size, by whether it is in int8
SIZES = ((48, 64), (45, 66), (576, 1536))


THREADS = [int(number) for number in os.environ.get("COMPILED_TEST_THREADS", "1 3").split()]


@pytest.fixture(autouse=True, params=THREADS)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, wanted: Tensor, share: float) -> None:
    assert found.shape == wanted.shape
    if wanted.numel():
        assert float((found - wanted).norm() / wanted.norm()) < share


@pytest.mark.parametrize("num_rows", [0, 1, 5, 16, 33])
@pytest.mark.parametrize("is_int8", [False, True], ids=["float32", "int8"])
def test_products(is_int8: bool, num_rows: int) -> None:
    for num_out, num_in in SIZES:
        weight, bias, x = random(num_out, num_in, seed=1), random(num_out, seed=2), random(num_rows, num_in, seed=3)
        for given in (None, bias):
            assert_close(CompiledLinear(weight, given, is_int8=is_int8)(x), linear(x, weight, given), SHARES[is_int8])
        if not is_int8:
            assert_close(SharedLinear(weight)(x), linear(x, weight), SHARES[False])
            assert_close(SharedLinear(weight[:1])(x), linear(x, weight[:1]), SHARES[False])


@pytest.mark.parametrize("is_int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("width", [48, 45, 8])
def test_gate_and_up_apart(width: int, is_int8: bool) -> None:
    """As adapters need them: panel by panel, then as two."""
    gates, ups, bias, x = random(width, 64, seed=1), random(width, 64, seed=2), random(width, seed=3), random(7, 64, seed=4)
    matrix = Matrix(gates, bias, is_int8=is_int8, beside=(ups, None))
    halves = split_halves(product(matrix, x, PANELS, matrix.num_panels * PANEL))
    assert_close(halves[0][:, :width], linear(x, gates, bias), SHARES[is_int8])
    assert_close(halves[1][:, :width], linear(x, ups), SHARES[is_int8])


def test_silu_over_all_of_float32() -> None:
    numbers = torch.cat([torch.linspace(-110, 110, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, float("inf")])])
    numbers = torch.nn.functional.pad(numbers, (0, -len(numbers) % LANES))[None].contiguous()
    assert torch.allclose(gate(numbers.clone(), torch.ones_like(numbers)).double(), silu(numbers.double()), rtol=3e-7, atol=1e-35)
    numbers[0, 3] = float("nan")
    assert gate(numbers, torch.ones_like(numbers))[0, 3].isnan()


def test_norm() -> None:
    for width in (64, 576, 37):
        x, weight = random(9, width, seed=1) * torch.logspace(-3, 3, 9)[:, None], random(width, seed=2)
        assert torch.allclose(CompiledNorm(weight, 1e-5)(x), rms_norm(x, (width,), weight, 1e-5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("width", [576, 592])
def test_a_row_is_the_same_in_any_company(is_int8: bool, width: int) -> None:
    """SmolLM2's sizes, and one whose steps fill no tile of AMX; rows far larger and far smaller than each other."""
    x, weight = random(70, width) * torch.logspace(-3, 3, 70)[:, None], random(1536, width, seed=1)
    for part in (CompiledLinear(weight, is_int8=is_int8), SharedLinear(weight), CompiledNorm(weight[0].clone(), 1e-5)):
        together = part(x)
        for first, last in ((0, 1), (69, 70), (3, 5), (10, 17), (4, 13), (50, 65), (20, 36), (7, 24), (39, 70), (1, 68)):
            assert torch.equal(part(x[first:last].clone()), together[first:last])
        assert torch.equal(part(x.flip(0)).flip(0), together)


def test_int8_has_a_scale_per_row() -> None:
    """With one scale for the batch, a row a million times smaller than its neighbour would come out as zero."""
    weight, x = random(32, 64, seed=1), random(2, 64, seed=2)
    x[0] *= 1e6
    held = CompiledLinear(weight, is_int8=True)
    for row in range(2):
        assert_close(held(x)[row], linear(x, weight)[row], 0.03)
    assert not held(torch.zeros(3, 64)).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_int8_does_not_saturate(sign: int) -> None:
    """The largest sums that fit: every product of one sign, once rows are spread."""
    ones = spread(torch.ones(8, 512))
    assert CompiledLinear(sign * ones, is_int8=True)(ones) == pytest.approx(torch.full((8, 8), sign * 512.0), rel=1e-5)


def packed(weight: Tensor, *, is_int8: bool) -> tuple[Tensor, Tensor | None]:
    """(panels, steps, PANEL) and, in int8, (panels, PANEL) scales, by torch."""
    rows = pad(weight.float(), (0, 0, 0, -len(weight) % PANEL))
    if not is_int8:
        return rows.view(-1, PANEL, rows.shape[1]).transpose(1, 2), None
    rows = spread(rows)
    scales = rows.abs().amax(dim=1).clamp_min(1e-30) / 127
    levels = pad((rows / scales[:, None]).round().to(torch.int8), (0, -rows.shape[1] % 4))
    steps = (levels.view(torch.uint8) + 128).view(torch.int32)
    return steps.view(-1, PANEL, steps.shape[1]).transpose(1, 2), scales.view(-1, PANEL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_out", "num_in"), [(8, 8), (45, 66), (48, 64), (1600, 576), (40, 1537)])
def test_weights_are_packed(num_out: int, num_in: int, dtype: torch.dtype) -> None:
    """As torch does it: rows spread, whose last block may be half a one; rows and steps that fill up a panel are zeros."""
    weight = random(num_out, num_in).to(dtype)
    held = Matrix(weight, is_int8=False)
    assert torch.equal(held._weight, packed(weight, is_int8=False)[0])
    held, (steps, scales) = Matrix(weight, is_int8=True), packed(weight, is_int8=True)
    assert held._scales is not None
    assert scales is not None
    assert torch.allclose(held._scales, scales, rtol=1e-5)
    found, wanted = (each.contiguous().view(torch.uint8).int() for each in (held._weight, steps))
    assert int((found - wanted).abs().max()) <= 1, "sums of a block are added in another order"
    assert float((found != wanted).float().mean()) < 1e-3


def test_large_numbers_leave_int8_its_levels() -> None:
    """A hundred times the others, as activations have them: with one scale a row, the others would have a level or two."""
    x, weight = random(16, 576, seed=1), random(96, 576, seed=2)
    x[:, ::97] *= 100
    weight[:, ::97] = 0
    assert_close(CompiledLinear(weight, is_int8=True)(x), linear(x, weight), 0.2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_int8_shows_a_weight_that_is_not_finite(bad: float) -> None:
    """In its own output alone."""
    weight = random(32, 64, seed=1)
    weight[5, 7] = bad
    found = CompiledLinear(weight, is_int8=True)(random(3, 64))
    assert found[:, 5].isnan().all()
    assert found[:, [*range(5), *range(6, 32)]].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_int8_shows_a_row_that_is_not_finite(bad: float) -> None:
    x = random(3, 64)
    x[1, 7] = bad
    found = CompiledLinear(random(32, 64, seed=1), is_int8=True)(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("is_int8", [False, True], ids=["float32", "int8"])
def test_bytes_are_known_before_the_weights_are_there(is_int8: bool) -> None:
    kit = CompiledKit(is_int8)
    for shape in ((48, 64), (32, 64), (45, 66)):
        assert kit.linear(random(*shape)).num_bytes == kit.weight_bytes(shape)
    assert kit.weight_bytes((576, 576)) == (576 * 576 + 4 * 576 if is_int8 else 4 * 576 * 576)
    assert kit.weight_bytes((64,)) == 4 * 64, "norms stay float32"
    assert kit.tied(random(64, 32)).num_bytes == (64 * 32 + 4 * 64 if is_int8 else 0), "float32 reads the embedding as it lies"


class OneLayer:
    """Attention of one layer over a cache whose unwritten keys are NaN."""

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, window: int = 0, kv_dtype: torch.dtype | None = None
    ) -> None:
        shape = CacheShape(num_kv_heads, head_dim, block_size, torch.float32, torch.device("cpu"), kv_dtype=kv_dtype)
        self.cache = KvCache(shape, 1, 200, is_compiled=True)
        self.cache.layers[0].fill_(float("nan"))
        self.window, self.scale = window, head_dim**-0.5
        record = np.zeros(1, LAYER)
        record["window"], record["scale"] = window, self.scale
        self.stack = CompiledStack([], torch.ones(1, 1, dtype=torch.complex64))
        self.stack._records = record
        self.stack._rotations = torch.stack((torch.ones(2048, head_dim), torch.zeros(2048, head_dim)), dim=1)  # nothing turns
        self.stack.layers = [  # type: ignore[assignment]
            SimpleNamespace(
                num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, inner_width=1, qkv=SimpleNamespace(num_in=1)
            )
        ]

    def __call__(self, segments: list[Segment], qkv: Tensor, new_from: list[int] | None = None) -> Tensor:
        """(T, heads, head_dim) of rows (T, heads + 2 kv_heads, head_dim)."""
        layer = self.stack.layers[0]
        plan = StepPlan.build(self.cache, CompiledAttention(), segments, new_from or [segment.start for segment in segments])
        positions = torch.tensor([position for each in segments for position in range(each.start, each.end)])
        out, qkv = torch.empty(len(qkv), layer.num_heads, layer.head_dim), qkv.clone()
        job = self.stack._attention_job(ATTEND, 0, 1, len(qkv), positions, plan)
        job["qkv"], job["attended"] = qkv.data_ptr(), out.data_ptr()
        region().run(job)
        return out

    def wanted(self, qkv: Tensor) -> Tensor:
        """Of one text from its beginning."""
        layer = self.stack.layers[0]
        queries, keys, values = qkv.transpose(0, 1).split([layer.num_heads, layer.num_kv_heads, layer.num_kv_heads])
        group = layer.num_heads // layer.num_kv_heads
        places = torch.arange(len(qkv))
        mask = places[None] <= places[:, None]
        if self.window:
            mask &= places[None] > places[:, None] - self.window
        kept = self.cache.shape.kept_dtype
        keys, values = (each.to(kept).float().repeat_interleave(group, dim=0) for each in (keys, values))
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self.scale).transpose(0, 1)


SHAPES = [(9, 3, 64, 16), (4, 4, 8, 16), (24, 1, 20, 5), (6, 2, 128, 16), (2, 1, 256, 64)]


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16] if HAS_HALVES else [torch.float32])
@pytest.mark.parametrize("window", [0, 7, 150])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "block_size"), SHAPES)
def test_attention(num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, window: int, kv_dtype: torch.dtype) -> None:
    """In one go, token by token and in pieces, beside another text: the same bits, and torch's numbers."""
    num_tokens = 300
    qkv = random(num_tokens, num_heads + 2 * num_kv_heads, head_dim, seed=1)
    other = random(40, num_heads + 2 * num_kv_heads, head_dim, seed=2)
    blocks = list(range(1, 1 + -(-num_tokens // block_size)))
    others = list(range(100, 100 + -(-40 // block_size)))
    layer = OneLayer(num_heads, num_kv_heads, head_dim, block_size, window, kv_dtype)
    whole = layer([Segment(blocks, 0, num_tokens)], qkv)
    assert torch.allclose(whole, layer.wanted(qkv), atol=2e-6)

    for cuts in ([0, 1, 2, 130, 133, 299, 300], [0, 250, *range(251, 301)]):
        layer = OneLayer(num_heads, num_kv_heads, head_dim, block_size, window, kv_dtype)
        for start, end in pairwise(cuts):
            found = layer([Segment(others, 0, 40), Segment(blocks, start, end)], torch.cat([other, qkv[start:end]]))
            assert torch.equal(found[40:], whole[start:end])


def test_a_nan_stays_in_its_own_text() -> None:
    qkv = random(20, 15, 64, seed=1)
    bad = qkv.clone()
    bad[3] = float("nan")
    layer = OneLayer(9, 3, 64, 16)
    both = layer([Segment([1, 2], 0, 20), Segment([3, 4], 0, 20)], torch.cat([bad, qkv]))
    assert torch.allclose(both[20:], layer.wanted(qkv), atol=2e-6)
    assert both[3:20].isnan().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "block_size"), SHAPES)
def test_a_number_that_is_not_finite_reaches_no_earlier_token(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, bad: float
) -> None:
    """Whatever the token's place among those that are computed with it: another text may share what comes before it."""
    qkv = random(40, num_heads + 2 * num_kv_heads, head_dim, seed=1)
    blocks = list(range(1, 1 + -(-40 // block_size)))
    whole = OneLayer(num_heads, num_kv_heads, head_dim, block_size)([Segment(blocks, 0, 40)], qkv)
    for place in (1, 3, 17, 39):
        spoilt = qkv.clone()
        spoilt[place, num_heads:] = bad
        found = OneLayer(num_heads, num_kv_heads, head_dim, block_size)([Segment(blocks, 0, 40)], spoilt)
        assert torch.equal(found[:place], whole[:place])
        assert not found[place:].isfinite().any()


@pytest.mark.long
@pytest.mark.parametrize("threads", [THREADS[0]], indirect=True)
@pytest.mark.parametrize("name", OTHER_PROCESSORS)
def test_other_processors(name: str) -> None:
    """The same tests in a process that believes to run on less: all is compiled again for it. `test_tiles` tries what differs."""
    run_here(pretending(name), "not test_other and not team")


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_a_team_smaller_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP may give fewer threads, here one; their share of the work is not left undone: one test of each kind of job."""
    openmp, run, teams = region_module._openmp(), region_module.Region.run, set[int]()

    def run_and_look(self: region_module.Region, job: region_module.Job) -> None:
        run(self, job)
        teams.update(job["num_threads"][job["num_rows"] > 0].tolist())

    monkeypatch.setattr(region_module.Region, "run", run_and_look)
    most_levels = openmp.omp_get_max_active_levels()
    openmp.omp_set_max_active_levels(0)
    try:
        for is_int8 in (False, True):
            test_products(is_int8, 33)
            test_gate_and_up_apart(45, is_int8)
            test_a_row_is_the_same_in_any_company(is_int8, 592)
        test_norm()
        test_silu_over_all_of_float32()
        test_weights_are_packed(45, 66, torch.bfloat16)
        test_attention(*SHAPES[0], 7, torch.float32)
        test_sampler.test_a_token_looked_up_has_the_bits_of_the_draw(SamplingParams(temperature=0.7, top_k=20), sampler.draw)
    finally:
        openmp.omp_set_max_active_levels(most_levels)
    assert teams == {1}


def run_here(before: str, selection: str, **environment: str) -> None:
    """This file's other tests and those of the sampler, on three threads, in a process of their own."""
    files = [__file__, str(Path(__file__).parents[1] / "layers" / "test_sampler.py")]
    run = f"import sys, pytest\nsys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{files!r}, '-k', {selection!r}]))\n"
    run_python(before + run, **{"COMPILED_TEST_THREADS": "3", **environment})
