"""The small work between a layer's products, run by Triton's interpreter, against torch's calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.server.engine import build
from polyhead.server.engine.layers.cuda import plain_rows
from polyhead.server.engine.layers.cuda.fused import LARGEST_ROW, Fused
from polyhead.server.engine.layers.cuda.fused_probe import check
from polyhead.server.engine.layers.cuda.plain_rows import FP8, EightBits, HeadNorms, Scales, Turning
from polyhead.server.engine.layers.torch.dense import dense_linears
from polyhead.server.engine.work.sampling import SamplingParams
from tests.heads.models import save_tiny
from tests.server.engine.harness import assert_agrees
from tests.server.engine.layers.recorded import opened

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16]  # the interpreter computes wrong products of bfloat16: that is compiled alone (test_compile.py)
WIDTHS = [16, 100, 576]


@pytest.fixture
def fused() -> Any:
    """Nothing of it may fall back."""
    made = Fused()
    yield made
    assert made.failed == set()


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    tolerance = 1e-5 if found.dtype == torch.float32 else 4e-3
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_probe_finds_nothing_wrong(dtype: torch.dtype, fused: Fused, caplog: pytest.LogCaptureFixture) -> None:
    check(fused, CPU, dtype)
    assert not caplog.records


@pytest.mark.parametrize("width", [*WIDTHS, 1500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_up(dtype: torch.dtype, width: int, fused: Fused) -> None:
    both = random(3, 2 * width, dtype=dtype)
    assert_close(fused.silu_up(both), plain_rows.silu_up(both))


@pytest.mark.parametrize("has_added", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_and_norm(dtype: torch.dtype, width: int, has_added: bool, fused: Fused) -> None:
    """The sum stays where x was, rounded as torch rounds it."""
    x, weight = random(3, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    added = random(3, width + 5, dtype=dtype, seed=2)[:, :width] if has_added else None
    mine, theirs = x.clone(), x.clone()
    assert_close(fused.add_norm(mine, added, weight, 1e-5), plain_rows.add_norm(theirs, added, weight, 1e-5))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 16), (3, 1, 64), (2, 2, 80), (8, 2, 128)])
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_turning(dtype: torch.dtype, has_norms: bool, num_heads: int, num_kv_heads: int, head_dim: int, fused: Fused) -> None:
    """Queries in place; keys and values in the cache, in any order of rows; no other row of it."""
    qkv, angles = random(5, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype), random(5, head_dim // 2, seed=3) * 50
    rotations, write_rows = torch.polar(torch.ones_like(angles), angles), torch.tensor([9, 2, 30, 1, 17])
    weights = [(random(head_dim, dtype=dtype, seed=seed), 1e-6) for seed in (4, 5)]
    given = []
    for ways in (fused, plain_rows):
        mine, cache = qkv.clone(), torch.full((32, 2, num_kv_heads, head_dim), 7.0, dtype=dtype)
        ways.turn(mine, Turning(rotations, write_rows, cache, num_heads, HeadNorms(*weights) if has_norms else None))
        given.append((mine[:, : num_heads * head_dim], cache))
    for found, wanted in zip(*given, strict=True):
        assert_close(found, wanted)


INT8_ROWS = [plain_rows.INT8, EightBits("int8", torch.int8, 127, is_spread=False)]


@pytest.mark.parametrize("form", [*INT8_ROWS, FP8], ids=["int8", "int8 as it is", "fp8"])
@pytest.mark.parametrize(("width", "dtype"), [(100, torch.float32), (576, torch.float16), (1100, torch.float32)])
def test_quantise(dtype: torch.dtype, width: int, form: EightBits, fused: Fused) -> None:
    """A scale a row, whatever the rows beside it; zeros beyond what is given."""
    rows = random(3, width, dtype=dtype) * torch.tensor([[1.0], [300.0], [0.001]], dtype=dtype)
    found, scales = fused.quantized(rows, form, 5, width + 12)
    wanted, wanted_scales = plain_rows.quantized(rows, form, 5, width + 12)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    torch.testing.assert_close(scales[:3], wanted_scales[:3], rtol=1e-3, atol=0.0)
    off = (found.float() - wanted.float()).abs()
    if form.dtype == torch.int8:
        assert off.max() <= 1
        assert off.count_nonzero() <= 0.01 * off.numel(), "another order of sums before rounding"
        assert form.is_spread or dtype != torch.float32 or not off.any()
    else:
        assert (off / wanted.float().abs().clamp(min=1.0)).max() <= 0.13, "one step of three bits"
    assert not found[3:].float().any()
    assert not found[:, width:].float().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_shows_and_harms_no_other(bad: float, fused: Fused) -> None:
    rows = random(3, 192)
    alone, _ = fused.quantized(rows, plain_rows.FP8, 3, 192)
    rows[1, 7] = bad
    found, scales = fused.quantized(rows, plain_rows.FP8, 3, 192)
    assert scales.isfinite().tolist() == [True, False, True]
    assert torch.equal(found[[0, 2]].float(), alone[[0, 2]].float())


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", ["alone", "added", "gated"])
@pytest.mark.parametrize("width", [16, 100, 1100])
def test_descale(width: int, kind: str, has_bias: bool, fused: Fused) -> None:
    columns = 2 * width if kind == "gated" else width
    sums = (random(4, columns + 16) * 1000).to(torch.int32)[:3]
    bias = random(columns, seed=1) if has_bias else None
    scales = Scales(random(4, seed=2).abs() / 500, random(columns, seed=3), bias)
    added = random(3, width, seed=4) if kind == "added" else None
    given = sums, scales, torch.float32, added
    found, wanted = (ways.descaled(*given, is_gated=kind == "gated") for ways in (fused, plain_rows))
    assert found.shape == (3, width)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_row_beyond_one_program_is_left_to_torch(caplog: pytest.LogCaptureFixture) -> None:
    fused = Fused()
    rows = random(1, LARGEST_ROW + 16)
    assert torch.equal(fused.add_norm(rows, None, rows[0], 1e-5), plain_rows.add_norm(rows, None, rows[0], 1e-5))
    assert fused.failed == {"add and norm"}
    assert "more than one program holds" in caplog.text


def test_an_engine_on_all_of_it(fused: Fused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers whose small work is the kernels', sums within products, prefill and recorded steps: what the unsplit model says."""
    save_tiny("qwen3", tmp_path)
    linears = dense_linears(torch.float32, is_on_gpu=True, silu_up=fused.silu_up)
    monkeypatch.setattr(build, "torch_kit", lambda *_: build.TorchKit(linears, fused))
    bench = opened(tmp_path, monkeypatch, is_ahead=True)
    request = bench.sampled(bench.prompt(3), params=SamplingParams(max_new_tokens=3))
    bench.run(request)
    sample = request.samples[0]
    assert_agrees(sample, bench.unsplit_logprobs([*sample.prompt, *sample.completion]))
