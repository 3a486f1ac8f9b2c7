"""One attention call a layer for a whole step, as CUDA does it, against the CPU's own way. The kernel is played by plain torch."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from polyhead.server.engine import build
from polyhead.server.engine.blocks.cache import CacheShape, KvCache
from polyhead.server.engine.layers.cuda import fused as fused_module
from polyhead.server.engine.layers.cuda import varlen, varlen_probe
from polyhead.server.engine.layers.cuda.fused import Fused
from polyhead.server.engine.layers.cuda.threads import is_recording
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention, candidates
from polyhead.server.engine.layers.cuda.varlen_probe import QueryHeads, working_varlen
from polyhead.server.engine.layers.plan import AttentionBackend, Segment, StepPlan
from polyhead.server.engine.layers.torch.attention import TorchAttention
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.request import OnSwap
from polyhead.server.engine.work.sampling import SamplingParams
from tests.cases import in_turn
from tests.heads.models import save_tiny
from tests.server.engine.harness import Bench, assert_agrees, scores
from tests.server.engine.layers.varlen_reference import varlen_reference

BLOCK = 4
SHAPE = CacheShape(2, 8, BLOCK, torch.float32, torch.device("cpu"))
KERNELS = {"gathered": VarlenAttention(varlen_reference), "paged": VarlenAttention(varlen_reference, is_paged=True)}
DRAWN = SamplingParams(max_new_tokens=16)


@pytest.fixture(params=sorted(KERNELS))
def kernel(request: pytest.FixtureRequest) -> VarlenAttention:
    return KERNELS[request.param]


Way = tuple[KvCache, AttentionBackend]


def ways(num_slots: int, kernel: VarlenAttention) -> tuple[Way, Way]:
    """Two with the same random keys: torch's own calls, and the kernel. What nobody may see is NaN in the second."""
    plain, ragged = (KvCache(SHAPE, 1, num_slots) for _ in range(2))
    plain.layers[0].copy_(torch.randn(plain.layers[0].shape, generator=torch.Generator().manual_seed(1)))
    plain.layers[0][0] = 0.0
    ragged.layers[0].copy_(plain.layers[0])
    return (plain, TorchAttention()), (ragged, kernel)


def attend(way: Way, segments: list[Segment], new_from: list[int], queries: Tensor) -> Tensor:
    plan = StepPlan.build(*way, segments, new_from)
    return plan.attention.attend(plan, 0, queries, 0.3, 0)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 14)), min_size=1, max_size=8),
    st.sampled_from([0, 1, 5]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(sorted(KERNELS)),
    st.randoms(use_true_random=False),
)
def test_any_mix_of_prefill_and_decode(runs: list[tuple[int, int]], window: int, num_heads: int, name: str, order: Any) -> None:
    """Blocks in any order, ends inside blocks, queries whose keys are cached already, one head's group or none."""
    counts = [-(-(start + length) // BLOCK) for start, length in runs]
    slots = list(range(1, 1 + sum(counts)))
    order.shuffle(slots)
    segments = []
    for (start, length), count in zip(runs, counts, strict=True):
        segments.append(Segment([slots.pop() for _ in range(count)], start, start + length))
    new_from = [order.randint(segment.start, segment.end) for segment in segments]
    generator = torch.Generator().manual_seed(2)
    num_rows = sum(length for _, length in runs)
    qkv = torch.randn(num_rows, num_heads + 4, 8, generator=generator)
    found = []
    for way in ways(1 + sum(counts), KERNELS[name]):
        plan = StepPlan.build(*way, segments, new_from)
        plan.write(0, qkv[:, num_heads:].view(num_rows, 2, 2, 8))
        found.append(plan.attention.attend(plan, 0, qkv[:, :num_heads], 0.3, window))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_what_lies_past_a_sequences_end_is_never_read(kernel: VarlenAttention) -> None:
    """A block's unwritten rest, and other sequences' blocks: a NaN there stays there."""
    plain, (ragged, _) = ways(6, kernel)
    segments = [Segment([2, 4], 3, 6), Segment([5], 0, 1)]
    ragged.layers[0][4, 2:] = ragged.layers[0][5, 1:] = ragged.layers[0][3] = float("nan")
    queries = torch.randn(4, 4, 8)
    ends = [segment.end for segment in segments]
    found, wanted = (attend(way, segments, ends, queries) for way in ((ragged, kernel), plain))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_slot_is_cleared_only_where_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch a layer and block: 32 for each block of a model of 32 layers."""
    cleared: list[int] = []
    zero = Tensor.zero_
    monkeypatch.setattr(Tensor, "zero_", lambda tensor: (cleared.append(1), zero(tensor))[1])
    for reads_past_ends in (True, False):
        cleared.clear()
        kernel = VarlenAttention(varlen_reference, reads_past_ends=reads_past_ends)
        cache = KvCache(SHAPE, 3, 5, is_cleared=kernel.reads_past_ends)
        cache.clear(2)
        assert len(cleared) == (3 if reads_past_ends else 0)


def test_nothing_asked_for_needs_no_call(kernel: VarlenAttention) -> None:
    assert attend(ways(2, kernel)[1], [], [], torch.empty(0, 4, 8)).shape == (0, 4, 8)


@pytest.mark.parametrize(("family", "is_fast"), in_turn(["llama", "mistral", "qwen2", "qwen3"], [True, False]))
def test_the_engine_on_one_call_a_layer(
    family: str, is_fast: bool, kernel: VarlenAttention, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed lengths, windows, chunks, scoring from cached states, rules, and a swap that running samples follow."""
    monkeypatch.setattr(build, "working_varlen", lambda *_: kernel)
    save_tiny(family, tmp_path)
    limits = SchedulerLimits(chunk_tokens=7, min_chunk_tokens=1, target_step_s=1e6)  # chunks do not shrink on a slow machine
    bench = Bench.open(tmp_path, 2, max_context=128, scheduler=limits, is_fast=is_fast)
    assert bench.engine.trunk.attention is bench.engine.heads.attention is kernel
    rules = {"x": (10, 11, 12), "y": (10, 11, 20, 21)}
    requests = [
        bench.sampled(bench.prompt(length, length), params=DRAWN, score=("reference", "value", "rule"), rules=rules)
        for length in (1, 5, 16, 40)
    ]
    following = bench.sampled(bench.prompt(30, 9), params=DRAWN, on_swap=OnSwap.FOLLOW)
    bench.start(*requests, following, steps=12)
    bench.activate(2, policy=bench.policy("new"), value=bench.scalar("b"))
    bench.finish(*requests, following)
    for request in (*requests, following):
        sample = request.samples[0]
        assert_agrees(sample, bench.unsplit_logprobs([*sample.prompt, *sample.completion]))
    answers = {answer.rule_id: answer for answer in scores(requests[3].samples[0])["rule"].result}
    sample = requests[3].samples[0]
    for rule_id, suffix in rules.items():
        last = bench.unsplit_logprobs([*sample.prompt, *sample.completion, *suffix])[-1].exp()
        assert answers[rule_id].answer_mass == pytest.approx(float(last[3] + last[4]), abs=1e-5)
    assert len(following.samples[0].spans) == 2
    bench.assert_blocks_returned()


@pytest.mark.parametrize("window", [0, 3])
def test_a_softcap_by_a_kernel_that_knows_it(window: int) -> None:
    kernel = VarlenAttention(varlen_reference, is_paged=True, has_softcap=True)
    segments = [Segment([2, 4], 3, 6), Segment([5], 0, 1)]
    queries = torch.randn(4, 4, 8)
    plans = [StepPlan.build(*way, segments, [segment.end for segment in segments]) for way in ways(6, kernel)]
    plain, capped = (plan.attention.attend(plan, 0, queries, 3.0, window, 2.0) for plan in plans)
    torch.testing.assert_close(capped, plain, atol=1e-5, rtol=1e-5)
    assert working_varlen(SHAPE, QueryHeads(softcap=2.0), [kernel]) == kernel


def test_a_softcap_keeps_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[QueryHeads] = []
    monkeypatch.setattr(build, "working_varlen", lambda _, queries: asked.append(queries))
    save_tiny("gemma2", tmp_path)
    bench = Bench.open(tmp_path, 2, max_context=128)
    assert isinstance(bench.engine.trunk.attention, TorchAttention)
    assert isinstance(bench.engine.heads.attention, TorchAttention)
    assert [each.softcap for each in asked] == [0.5]
    assert working_varlen(SHAPE, asked[0], KERNELS.values()) is None


def test_a_kernel_is_tried_before_it_serves(kernel: VarlenAttention, caplog: pytest.LogCaptureFixture) -> None:
    """One that forgets the window, one that fails, one that gives NaN: each is passed by, with a line that says why."""

    def without_window(*inputs: Any, window_size: tuple[int, int], **others: Any) -> Tensor:
        return varlen_reference(*inputs, window_size=(-1, 0), **others)

    def failing(*inputs: Any, **others: Any) -> Tensor:
        raise RuntimeError("no kernel image is available\nfor this device")

    def nan(*inputs: Any, **others: Any) -> Tensor:
        return torch.full_like(inputs[0], float("nan"))

    shape = CacheShape(2, 8, 16, torch.bfloat16, torch.device("cpu"))
    broken = [VarlenAttention(without_window, kernel.is_paged), VarlenAttention(failing), VarlenAttention(nan)]
    with caplog.at_level(logging.WARNING):
        assert working_varlen(shape, QueryHeads(), [*broken, kernel]) == kernel
        assert working_varlen(shape, QueryHeads(), broken) is None
    assert len(caplog.records) == 6
    assert "no kernel image" in caplog.text


@pytest.mark.parametrize(("failing", "is_paged"), [("decode steps", True), ("prefills", False)])
def test_a_kernel_that_fails_in_traffic(
    failing: str, is_paged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiler's error in a step that was not tried at start ended that step's requests, and every later step's of its kind. Torch's
    attention takes over, in the middle of the step, and what is no number in blocks that were not cleared does no harm.
    """

    def compiled(*inputs: Any, **others: Any) -> Tensor:
        most_queries = inputs[5]
        if is_in_traffic and (most_queries == 1) == (failing == "decode steps"):
            raise RuntimeError("out of resource: shared memory\nRequired: 300000")
        return varlen_reference(*inputs, **others)

    is_in_traffic = False
    monkeypatch.setattr(varlen_probe, "candidates", lambda *_: [VarlenAttention(compiled, is_paged, reads_past_ends=False)])
    save_tiny("mistral", tmp_path)
    bench = Bench.open(tmp_path, 2, dtype=torch.float32, max_context=128)
    kernel = bench.engine.trunk.attention
    assert isinstance(kernel, VarlenAttention)
    assert kernel.fallback is not None
    is_in_traffic = True
    for cache in (bench.engine.trunk.cache.kv, bench.engine.heads.cache):
        for layer in cache.layers:
            layer[1:].fill_(float("nan"))
    for seed in range(2):
        requests = [bench.sampled(bench.prompt(length, length), params=DRAWN, score=("value",)) for length in (3, 20 + seed, 40)]
        bench.run(*requests)
        for request in requests:
            sample = request.samples[0]
            assert_agrees(sample, bench.unsplit_logprobs([*sample.prompt, *sample.completion]))
    assert kernel.failed == {failing}
    assert [record.message for record in caplog.records if "are not used" in record.message] == [
        f"{failing} by torch varlen are not used: out of resource: shared memory"
    ]


def test_a_recording_that_fails_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch into an invalid recording fails: the kernel, which had run a moment before, was given up for good."""

    def launched(*inputs: Any, **others: Any) -> Tensor:
        raise RuntimeError("operation failed due to a previous error during capture")

    way, fused = ways(3, VarlenAttention(launched, fallback=TorchAttention()))[1], Fused()
    plan = StepPlan.build(*way, [Segment([1], 2, 3)], [3])
    monkeypatch.setitem(sys.modules, "polyhead.server.engine.layers.cuda.fused_kernels", None)
    for module in (varlen, fused_module):
        monkeypatch.setattr(module, "is_recording", lambda: True)
    with pytest.raises(RuntimeError, match="previous error"):
        plan.attention.attend(plan, 0, torch.zeros(1, 4, 8), 0.3, 0)
    with pytest.raises(ImportError):
        fused.silu_up(torch.zeros(1, 8))
    assert plan.attention.failed == fused.failed == set()
    monkeypatch.undo()
    assert not is_recording()


@pytest.mark.parametrize(
    ("head_dim", "has_triton", "names"),
    [
        (128, True, ["triton paged", "torch varlen", "torch flash"]),
        (128, False, ["torch varlen", "torch flash"]),
        (36, True, ["triton paged"]),  # FlashAttention takes multiples of 8
        (512, True, []),
    ],
)
def test_kernels_of_a_gpu(head_dim: int, has_triton: bool, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def newer(query: Tensor, *, scale: float, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor) -> Tensor:
        """Takes what torch 2.13's function takes."""
        return query

    monkeypatch.setattr(torch_varlen, "varlen_attn", newer)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(varlen, "find_spec", lambda name: has_triton or None)
    assert [kernel.name for kernel in candidates(torch.device("cuda"), torch.bfloat16, head_dim)] == names


def test_an_older_torch_has_its_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """varlen_attn of torch 2.11 lacks what a step needs; the operator beneath it has it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(varlen, "find_spec", lambda name: None)
    monkeypatch.setattr(torch_varlen, "varlen_attn", lambda query, key, value, *, scale=None: query)
    assert [kernel.name for kernel in candidates(torch.device("cuda"), torch.float16, 64)] == ["torch flash"]


def test_the_operator_beneath_takes_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments by position and name exist, and one query that sees all its keys is not called causal."""
    schema = torch.ops.aten._flash_attention_forward.default._schema
    seen: list[tuple[bool, int, int]] = []

    def operator(*inputs: Any, **options: Any) -> tuple[Tensor]:
        names = [argument.name for argument in schema.arguments]
        given = dict(zip(names, inputs, strict=False)) | options
        assert given.keys() <= set(names)
        seen.append((given["is_causal"], given["window_size_left"], given["window_size_right"]))
        return (inputs[0],)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", operator)
    kernel = VarlenAttention(varlen._flash)
    for segments, window in (([Segment([1], 2, 3)], 0), ([Segment([1], 0, 3)], 0), ([Segment([1], 2, 3)], 2)):
        way = ways(3, kernel)[1]
        plan = StepPlan.build(*way, segments, [segment.end for segment in segments])
        plan.attention.attend(plan, 0, torch.zeros(segments[0].end - segments[0].start, 4, 8), 0.3, window)
    assert seen == [(False, -1, -1), (True, -1, 0), (False, 1, 0)]


def test_the_cpu_keeps_its_own_way() -> None:
    assert list(candidates(torch.device("cpu"), torch.bfloat16, 64)) == []
    assert working_varlen(SHAPE, QueryHeads()) is None
