"""bfloat16 on our own layers: as close to the unsplit model as transformers' own rounding allows, and no further from float32."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.lora import LoraAdapter
from polyhead.server.engine.build import OutputForm
from polyhead.server.engine.layers.fast import FastHead, FastTrunk
from polyhead.server.engine.layers.torch.dense import DenseLinear
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.engine.work.request import OnSwap, Sample
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.versions.head_loader import HeadLoader, to_file
from tests.cases import in_turn
from tests.heads.adapters import merge_by_hand, random_adapter
from tests.heads.models import save_tiny
from tests.server.engine.harness import Bench, scores

DRAWN = SamplingParams(max_new_tokens=24)
CPU = torch.device("cpu")
SMALL_CHUNKS = SchedulerLimits(chunk_tokens=7, min_chunk_tokens=1)
ROUNDING = 0.07  # mean of a log-prob's error that these models (32 numbers a row, at random) show in transformers' own bfloat16


def mean_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().mean())


@pytest.mark.parametrize(("family", "is_fast"), in_turn(["llama", "mistral", "qwen2", "qwen3"], [True, False]))
def test_as_far_from_the_truth_as_transformers(family: str, is_fast: bool, tmp_path: Path) -> None:
    """The truth: the same bfloat16 weights computed in float32. Prefilled in chunks of 7 past the windows, then decoded."""
    save_tiny(family, tmp_path)
    bench = Bench.open(tmp_path, 2, dtype=torch.bfloat16, max_context=128, scheduler=SMALL_CHUNKS, is_fast=is_fast)
    assert isinstance(bench.engine.trunk.module, FastTrunk) == is_fast
    assert isinstance(bench.engine.active.heads["policy"].live.module, FastHead) == is_fast
    requests = [bench.sampled(bench.prompt(length, length), params=DRAWN, score=("reference",)) for length in (1, 5, 16, 40)]
    bench.run(*requests)
    samples = [request.samples[0] for request in requests]
    ours = torch.tensor([sample.logprobs for sample in samples])
    theirs = torch.stack([drawn_logprobs(bench.model, sample) for sample in samples])
    exact = copy.deepcopy(bench.model).float()
    truth = torch.stack([drawn_logprobs(exact, sample) for sample in samples])
    scored = torch.stack([torch.as_tensor(scores(sample)["reference"].result.logprobs) for sample in samples])
    assert 0 < mean_error(theirs, truth) < ROUNDING
    assert mean_error(ours, truth) < 1.2 * mean_error(theirs, truth)
    assert mean_error(ours, theirs) < 1.7 * mean_error(theirs, truth), "two roundings, neither of them ours alone"
    assert mean_error(ours, scored) < mean_error(theirs, truth)
    bench.assert_blocks_returned()


@torch.no_grad()
def drawn_logprobs(model: PreTrainedModel, sample: Sample) -> Tensor:
    """(completion,)"""
    logits = model(torch.tensor([[*sample.prompt, *sample.completion]])).logits[0, len(sample.prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(sample.completion)[:, None])[:, 0]


def test_outputs_may_be_wider_than_layers(tmp_path: Path) -> None:
    """A server with heads in bfloat16 and an output of their own in float32 ended at its start, when a head's layers were looked at."""
    save_tiny("llama", tmp_path)
    bench = Bench.open(tmp_path, 2, dtype=torch.bfloat16, max_context=128, output=OutputForm("none", torch.float32))
    heads = bench.engine.heads
    heads._calls.clear()
    heads_of = HeadLoader(bench.spec, None, torch.bfloat16, CPU, heads.prepare, heads.weight_bytes, torch.float32)
    head = heads_of.build("c", heads_of.open(bytearray(to_file(bench.tensors["a"]))), OutputKind.OWN)
    bench.activate(2, policy=head, value=bench.engine.active.heads["value"].live)
    request = bench.sampled(bench.prompt(9), params=DRAWN)
    bench.run(request)
    assert len(request.samples[0].completion) == DRAWN.max_new_tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotations_are_those_of_the_family(dtype: torch.dtype, llama_folder: Path) -> None:
    """Sines and cosines rounded as transformers rounds them: in bfloat16, position 400 is off by half a degree."""
    bench = Bench.open(llama_folder, 2, dtype=dtype)
    trunk = bench.engine.trunk.module
    assert isinstance(trunk, FastTrunk)
    rotary = bench.model.model.rotary_emb  # type: ignore[union-attr]
    cos, sin = rotary(torch.zeros(1, 1, 1, dtype=dtype), torch.arange(256)[None])  # type: ignore[operator]
    half = cos.shape[-1] // 2
    assert torch.equal(trunk.rotations_at(dtype, CPU).real, cos[0, :, :half].float())
    assert torch.equal(trunk.rotations_at(dtype, CPU).imag, sin[0, :, :half].float())


def test_neighbours_chunks_and_cache(llama_folder: Path) -> None:
    lengths = (70, 33, 16, 3, 129)
    alone = Bench.open(llama_folder, 2, dtype=torch.bfloat16)
    chunked = Bench.open(llama_folder, 2, dtype=torch.bfloat16, scheduler=SMALL_CHUNKS)
    wanted = {}
    for length in lengths:
        request = alone.given(alone.prompt(length, length), alone.prompt(20, 1), score=("reference",))
        alone.run(request)
        wanted[length] = scores(request.samples[0])["reference"].result.logprobs
    for bench in (chunked, alone):
        requests = [bench.given(bench.prompt(length, length), bench.prompt(20, 1), score=("reference",)) for length in lengths]
        bench.run(*requests)
        for length, request in zip(lengths, requests, strict=True):
            found = torch.as_tensor(scores(request.samples[0])["reference"].result.logprobs)
            assert mean_error(found, torch.as_tensor(wanted[length])) < ROUNDING


def test_a_follower_goes_on_with_the_new_version(llama_folder: Path) -> None:
    """Its keys are read again from boundary states: what it draws after the swap is what the new head says of the same text."""
    old, bench = (Bench.open(llama_folder, 2, dtype=torch.bfloat16) for _ in range(2))
    request = bench.sampled(bench.prompt(20), params=DRAWN, on_swap=OnSwap.FOLLOW)
    bench.start(request, steps=8)

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] *= 2.0

    bench.activate(2, policy=bench.policy("new", change), value=bench.scalar("b"))
    bench.finish(request)
    sample = request.samples[0]
    before = old.given(sample.prompt, sample.completion, score=("policy",))
    old.run(before)
    assert {span.head.version for span in sample.spans} == {1, 2}
    scored = bench.given(sample.prompt, sample.completion, score=("policy",))
    bench.run(scored)
    late = sample.spans[-1].start
    by_new, by_old = (torch.as_tensor(scores(given.samples[0])["policy"].result.logprobs) for given in (scored, before))
    drawn = torch.tensor(sample.logprobs)
    assert mean_error(drawn[late:], by_new[late:]) < ROUNDING < mean_error(drawn[late:], by_old[late:])
    assert mean_error(drawn[:late], by_old[:late]) < ROUNDING < mean_error(drawn[:late], by_new[:late])


def test_an_adapter_is_the_merged_head(llama_folder: Path) -> None:
    """Each in its own rows of one pass with the base."""
    bench = Bench.open(llama_folder, 2, dtype=torch.bfloat16)
    base = bench.engine.active.heads["policy"].live
    loader = HeadLoader(bench.spec, bench.trunk.embedding, torch.bfloat16, torch.device("cpu"), bench.engine.heads.prepare)
    tensors = random_adapter(bench.spec, seed=1, targets=("q_proj", "v_proj", "gate_proj", "down_proj"))
    adapter = loader.build_adapted("adapted", loader.open(bytearray(to_file(tensors))), LoraAdapter(rank=3, alpha=1.5), base)
    merged = bench.policy("merged", lambda own: own.update(merge_by_hand(own, tensors, 0.5)))
    lives = (base, adapter, merged)
    given = [bench.given(bench.prompt(20), bench.prompt(24, 1), score=("reference",)) for _ in lives]
    for request, live in zip(given, lives, strict=True):
        request.pinned["reference"] = ServedHead("reference", 9, bench.manifest(HeadKind.POLICY, live), live)
    bench.run(*given)
    plain, adapted, whole = (torch.as_tensor(scores(each.samples[0])["reference"].result.logprobs) for each in given)
    assert mean_error(adapted, whole) < ROUNDING < mean_error(adapted, plain)


@torch.no_grad()
def test_taps_are_the_states_inside(llama_folder: Path) -> None:
    bench = Bench.open(llama_folder, 3, dtype=torch.bfloat16, tap_layer=2, max_context=128, scheduler=SMALL_CHUNKS)
    tokens = bench.prompt(40)
    hidden = bench.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    for layer in (2, 3):
        request = bench.given(tokens, [], return_states=True, states_layer=layer)
        bench.run(request)
        found = request.samples[0].states
        assert found is not None
        assert found.dtype == torch.bfloat16
        error, distance = (float((found - hidden[each][0]).float().norm() / found.float().norm()) for each in (layer, layer - 1))
        assert error < 0.04 < distance


def test_bytes_are_half_and_counted_as_they_are(llama_folder: Path) -> None:
    half, whole = Bench.open(llama_folder, 2, dtype=torch.bfloat16), Bench.open(llama_folder, 2)
    head, schema = half.policy("c").module, half.spec.head_schema(half.policy("c").module.output)
    assert isinstance(head, FastHead)
    assert head.num_bytes == sum(itertools.starmap(half.engine.heads.weight_bytes, schema.items()))
    assert 2 * half.engine.trunk.num_bytes == whole.engine.trunk.num_bytes


def test_a_head_file_is_not_kept_beside_its_weights() -> None:
    """A matrix that is used as it lies would hold the whole file that it is a view of."""
    file = torch.randn(10, 8)
    linear = DenseLinear(file[2:6])
    file.zero_()
    assert linear(torch.ones(1, 8)).any()


@pytest.mark.parametrize(("held", "error"), [("int8", 0.2), ("fp8", 0.8)])
def test_eight_bits_beside_bfloat16_are_close(held: str, error: float, llama_folder: Path) -> None:
    """The form that CUDA serves, on the CPU."""
    bench = Bench.open(llama_folder, 2, dtype=torch.bfloat16, trunk_quantization=held, head_quantization=held)
    request = bench.sampled(bench.prompt(30), params=DRAWN, score=("reference", "value"))
    bench.run(request)
    sample = request.samples[0]
    reference = bench.unsplit_logprobs([*sample.prompt, *sample.completion])[len(sample.prompt) - 1 :]
    wanted = [reference[index, token].item() for index, token in enumerate(sample.completion)]
    assert sum(abs(a - b) for a, b in zip(sample.logprobs, wanted, strict=True)) / len(wanted) < error, "of 32 numbers a row, at random"
    assert scores(sample)["reference"].result.logprobs == pytest.approx(sample.logprobs, abs=error / 2)


def test_bit_for_bit_is_refused(llama_folder: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        Bench.open(llama_folder, 2, dtype=torch.bfloat16, is_deterministic=True)
    assert caught.value.field == "deterministic"
