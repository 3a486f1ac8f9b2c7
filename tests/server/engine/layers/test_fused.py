"""Small work between products where its kernels cannot be had: torch's calls compute it, and the log says so. The kernels: tests/triton."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from polyhead.server.engine import build
from polyhead.server.engine.layers.cuda import fused_probe, plain_rows
from polyhead.server.engine.layers.cuda.eight_bit import FP8, INT8, EightBitLinear, eight_bit_linears, format_for, has_row_wise
from polyhead.server.engine.layers.cuda.fused import Fused
from polyhead.server.engine.layers.cuda.fused_probe import check, fused_for
from polyhead.server.engine.layers.torch.dense import dense_linears
from polyhead.server.engine.work.sampling import SamplingParams
from tests.heads.models import save_tiny
from tests.server.engine.layers.recorded import opened

CPU = torch.device("cpu")
KERNELS = ["add and norm", "descale", "quantise fp8", "quantise int8", "rope and cache", "silu x up"]


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of the kernels fails as a compiler's error would, at the first launch."""
    monkeypatch.setitem(sys.modules, "polyhead.server.engine.layers.cuda.fused_kernels", None)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("no_triton")
def test_a_kernel_that_fails_is_said_once_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    fused = Fused()
    with caplog.at_level(logging.WARNING):
        check(fused, CPU, torch.float32)
        assert sorted(fused.failed) == KERNELS
        both = random(3, 8)
        assert torch.equal(fused.silu_up(both), plain_rows.silu_up(both))
    assert sorted(record.message.split(" is not used")[0] for record in caplog.records) == [f"the GPU kernel {name}" for name in KERNELS]


def test_a_kernel_that_is_wrong_is_put_aside(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Fused):
        def silu_up(self, both: Tensor) -> Tensor:
            return plain_rows.silu_up(both) * 1.1

        def _either(self, name: str, kernel: Any, plain: Any) -> Any:
            return plain()

    fused = Wrong()
    check(fused, CPU, torch.float32)
    assert fused.failed == {"silu x up"}
    assert "off by 0.1 of its norm" in caplog.text


def test_memory_that_runs_out_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(both: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("polyhead.server.engine.layers.cuda.fused._silu_up", full)
    fused = Fused()
    with pytest.raises(torch.OutOfMemoryError):
        fused.silu_up(random(2, 8))
    assert not fused.failed


def test_only_a_gpu_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of a GPU, 16 bits with triton there; they are tried once."""
    tried: list[torch.dtype] = []
    monkeypatch.setattr(fused_probe, "check", lambda fused, device, dtype: tried.append(dtype))
    monkeypatch.setattr(fused_probe, "find_spec", lambda name: True)
    fused_probe._tried.cache_clear()
    gpu = torch.device("cuda:5")
    assert fused_for(CPU, torch.bfloat16) is fused_for(gpu, torch.float32) is None
    assert fused_for(gpu, torch.bfloat16) is fused_for(gpu, torch.bfloat16) is not None
    assert tried == [torch.bfloat16]
    monkeypatch.setattr(fused_probe, "find_spec", lambda name: None)
    assert fused_for(gpu, torch.bfloat16) is None
    fused_probe._tried.cache_clear()


@pytest.mark.usefixtures("no_triton")
@pytest.mark.parametrize(("family", "held"), [("llama", "dense"), ("qwen3", "dense"), ("qwen2", "int8"), ("mistral", "fp8")])
def test_an_engine_whose_kernels_all_fail(family: str, held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way through a layer is a GPU's, sums within products included: it says what torch's way says with the same weights."""
    save_tiny(family, tmp_path)
    fused = Fused()
    form = {"int8": INT8, "fp8": FP8}.get(held)
    own = form and replace(form, row_wise=by_hand if held == "fp8" else None)
    if form is None or own is None:
        ways = dense_linears(torch.float32, is_on_gpu=True, silu_up=fused.silu_up), dense_linears(torch.float32)
    else:
        ways = eight_bit_linears(own, torch.float32, fused), eight_bit_linears(form, torch.float32)
    found = []
    for kit in (build.TorchKit(ways[0], fused), build.TorchKit(ways[1])):
        monkeypatch.setattr(build, "torch_kit", lambda *_, kit=kit: kit)
        bench = opened(tmp_path, monkeypatch, is_ahead=True)
        request = bench.sampled(bench.prompt(20), params=SamplingParams(max_new_tokens=6, temperature=0.0))
        bench.run(request)
        found.append(request.samples[0])
    assert found[0].completion == found[1].completion
    assert found[0].logprobs == pytest.approx(found[1].logprobs, abs=1e-4 if held == "dense" else 0.02)
    assert "rope and cache" in fused.failed


def by_hand(rows_TI: Tensor, weight_IO: Tensor, rows_T1: Tensor, outputs_1O: Tensor, dtype: torch.dtype) -> Tensor:
    """What a GPU's product with scales of rows computes."""
    return (rows_TI.float() @ weight_IO.float() * rows_T1 * outputs_1O).to(dtype)


@pytest.mark.parametrize("has_bias", [False, True])
def test_fp8_products_that_apply_their_scales(has_bias: bool) -> None:
    """Sizes that are padded; the same numbers as scales applied afterwards."""
    weight, x, other = random(45, 66, seed=1), random(3, 66, seed=2), random(3, 45, seed=3)
    bias = random(45, seed=4) if has_bias else None
    after, within = (EightBitLinear(form, None, weight, bias) for form in (FP8, replace(FP8, row_wise=by_hand)))
    torch.testing.assert_close(within(x), after(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(within.add_to(x, other.clone()), after.add_to(x, other.clone()), rtol=1e-4, atol=1e-4)
    gated = EightBitLinear(replace(FP8, row_wise=by_hand), None, random(32, 66), None).product(x, is_gated=True)
    assert gated.shape == (3, 16)


def test_a_product_with_scales_is_tried_first(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refusing(*given: Any) -> Tensor:
        raise RuntimeError("rowwise scaling is only supported on sm_90\nmore")

    def forgetful(rows_TI: Tensor, weight_IO: Tensor, *others: Any) -> Tensor:
        return rows_TI.float() @ weight_IO.float()

    assert has_row_wise(CPU, torch.float32, by_hand)
    assert not has_row_wise(CPU, torch.float32, forgetful)
    assert not has_row_wise(CPU, torch.float32, refusing)
    assert "fp8 products apply no scales of rows: rowwise scaling is only supported on sm_90" in caplog.text
    assert format_for("none", CPU, torch.float32) is None
    assert format_for("fp8", CPU, torch.bfloat16) is FP8


def test_sums_within_products() -> None:
    """On a GPU a residual is added by the product itself, in place; a bias comes after."""
    weight, x, other = random(48, 64, seed=1), random(5, 64, seed=2), random(5, 48, seed=3)
    product = dense_linears(torch.float32, is_on_gpu=True).linear(weight, None)
    assert product.adds_for_free
    given = other.clone()
    assert product.add_to(x, given) is given
    torch.testing.assert_close(given, other + linear(x, weight), rtol=1e-5, atol=1e-5)
    assert not dense_linears(torch.float32, is_on_gpu=True).linear(weight, random(48)).adds_for_free
    assert not dense_linears(torch.float32).linear(weight, None).adds_for_free, "on the CPU it would change bits"


def test_int8_outputs_are_padded_to_16() -> None:
    """Tensor cores take 16 bytes at a time: with 8 a vocabulary could fall back to a slow kernel, or to none."""
    assert eight_bit_linears(INT8, torch.bfloat16).weight_bytes((40, 24)) == 48 * 32 + 4 * 40
