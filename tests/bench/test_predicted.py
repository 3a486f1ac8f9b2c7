"""What is predicted of a GPU: its counts are those of our code, and its arithmetic adds up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.client.bench.gpu import predicted
from polyhead.client.bench.gpu.driver import Driver
from polyhead.client.bench.gpu.measures import step_bytes
from polyhead.client.bench.gpu.models import LLAMA_8B, TINY, RandomWeights, random_engine
from polyhead.client.bench.gpu.predicted import CONTEXT, H200, STREAMS, Costs, predict, weight_bytes
from polyhead.client.bench.gpu.work import PLANS, SEED, config_for
from polyhead.server.engine import build
from polyhead.server.engine.layers.cuda.eight_bit import FP8, INT8, eight_bit_linears
from polyhead.server.engine.layers.cuda.fused import Fused
from polyhead.server.engine.layers.cuda.graphs import StepGraphs
from polyhead.server.engine.layers.cuda.tables import DecodeRow
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention
from polyhead.server.engine.layers.linears import Quantization
from polyhead.server.engine.layers.torch.dense import dense_linears
from tests.server.engine.layers.recorded import Launches

CPU = torch.device("cpu")
HELD: list[Quantization] = ["none", "int8", "fp8"]


class Once:
    """Counts what stands for one kernel of ours as one, whatever it takes here."""

    def __init__(self, launches: Launches) -> None:
        self.launches = launches

    def __call__(self, compute: Callable[[], Any]) -> Any:
        was_counted = not self.launches.is_replaying
        self.launches.counts["ours"] += was_counted
        self.launches.is_replaying = True
        try:
            return compute()
        finally:
            self.launches.is_replaying = not was_counted


class Slot:
    slot = 1


@pytest.mark.parametrize("held", HELD)
def test_kernels_are_counted(held: Quantization, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a recorded step of trunk and head, layer by layer, as they are launched."""
    launches = Launches()
    once = Once(launches)

    class Kernels(Fused):
        def _either(self, name: str, kernel: Any, plain: Any) -> Any:
            return once(plain)

    class Counted:
        def __init__(self, compute: Callable[[], Tensor]) -> None:
            with launches:
                self.output = compute()

        def replay(self) -> None: ...

    def row_wise(rows: Tensor, weight: Tensor, *others: Any) -> Tensor:
        return once(lambda: torch.zeros(len(rows), weight.shape[1], dtype=torch.bfloat16))

    fused = Kernels()
    form = {"int8": INT8, "fp8": replace(FP8, row_wise=row_wise)}.get(held)
    dense = dense_linears(torch.bfloat16, is_on_gpu=True, silu_up=fused.silu_up)
    linears = dense if form is None else eight_bit_linears(form, torch.bfloat16, fused)
    attention = VarlenAttention(lambda queries, *_, **__: once(lambda: torch.zeros_like(queries)), is_paged=True)
    monkeypatch.setattr(build, "torch_kit", lambda *_: build.TorchKit(linears, fused))
    monkeypatch.setattr(build, "working_varlen", lambda *_: attention)
    monkeypatch.setattr(build, "step_graphs", lambda cache, kernel, most: StepGraphs(cache, kernel, most, Counted))
    ours = random_engine(TINY, RandomWeights(SEED, 0.2, torch.bfloat16, CPU), config_for(TINY, PLANS["tiny"], torch.bfloat16))
    policy = ours.roles()["policy"].live
    rows = [DecodeRow(3, 5, [Slot()])] * 2
    ours.engine.trunk.decode(rows)
    ours.engine.heads.decode(policy, rows)
    assert sum(launches.counts.values()) == predicted.num_kernels(TINY, held, 2, num_processors=1), launches.counts


@pytest.mark.parametrize("held", HELD)
def test_bytes_are_those_that_are_served(held: Quantization) -> None:
    """On a shape without padding; a step's, as the benchmark counts them."""
    shape = replace(TINY, vocab_size=96)
    config = replace(config_for(shape, PLANS["tiny"], torch.bfloat16), trunk_quantization=held, head_quantization=held)
    ours = random_engine(shape, RandomWeights(SEED, 0.2, torch.bfloat16, CPU), config)
    with Driver(ours.engine, ours.roles()):
        assert step_bytes(ours, 3, CONTEXT) == weight_bytes(shape, held) + 3 * CONTEXT * predicted.kv_bytes(shape)


def test_an_8b_shape_by_hand() -> None:
    """7.5 billion numbers besides the embedding, 128 KiB of keys and values a token."""
    assert predicted.num_weights(LLAMA_8B) == 32 * (6144 * 4096 + 4096 * 4096 + 3 * 14336 * 4096) + 128256 * 4096 == 7_504_658_432
    assert predicted.kv_bytes(LLAMA_8B) == 128 << 10
    one = predict("none", 1)
    assert one.num_bytes == 2 * 7_504_658_432 + 2 * 65 * 4096 + 192 * (128 << 10)
    assert one.roofline_s == pytest.approx(one.num_bytes / 4.8e12)
    assert one.num_kernels == 32 * 9 + 32 + 12, "keys of one stream are split"
    assert one.device_s == pytest.approx(one.num_bytes / 4.8e12 / 0.8 + 332 * 2e-6 + 47 * 2.5e-6)
    assert one.share == pytest.approx(one.roofline_s / max(one.device_s, 1.4e-3 + 27e-6))


def test_what_binds_a_step() -> None:
    """The memory, operations where a card has few, or the host where it is slow."""
    few = replace(H200, flops=dict.fromkeys(H200.flops, 1e12))
    large = predict("none", 256, card=few)
    assert large.roofline_s == pytest.approx(large.flops / 1e12)
    assert large.roofline_s > predict("none", 256).roofline_s
    slow = predict("none", 8, costs=Costs(host_s=1.0))
    assert slow.step_s == slow.host_s > slow.device_s
    free = Costs(bandwidth_share=1.0, flops_share=1.0, kernel_s=0.0, eager_s=0.0, host_s=0.0, host_text_s=0.0)
    assert predict("int8", 8, costs=free).share == 1.0


def test_the_page_has_this_table() -> None:
    from tests.guards.tree import ROOT

    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert predicted.table() in text, "write it again: python -m polyhead.client.bench.gpu.predicted"
    assert len(predicted.table().splitlines()) == 2 + len(HELD) * len(STREAMS)
