"""int8 without --deterministic: close to the float32 model, and to itself however a text got here. Bit for bit: test_deterministic.py."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model.family import build_head
from polyhead.server.engine.build import OutputForm
from polyhead.server.engine.compiled.machine import HAS_HALVES
from polyhead.server.engine.layers.fast import FastHead
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.sampling import SamplingParams
from tests.cases import in_turn
from tests.heads.models import save_tiny
from tests.server.engine.harness import Bench, scores

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=24)
INT8 = {"trunk_quantization": "int8", "head_quantization": "int8"}
# The mean gap from float32 is 0.02 to 0.17 on most processors, and 0.206 at most where there is AVX2 alone.
TOLERANCE = 0.1  # of a log-prob: a rounding of 1e-7 may tip an activation to the next of 127 levels, and that travels on


HELD = {"both": INT8, "trunk": {"trunk_quantization": "int8"}, "heads": {"head_quantization": "int8"}}


@pytest.mark.parametrize(("family", "held"), in_turn(["llama", "mistral", "qwen2", "qwen3"], HELD))
def test_close_to_the_unsplit_model(family: str, held: str, tmp_path: Path) -> None:
    """Biases (qwen2), norms of queries and keys (qwen3), windows (mistral), in chunks and decoding."""
    save_tiny(family, tmp_path)
    chunks = SchedulerLimits(chunk_tokens=7, min_chunk_tokens=1)
    bench = Bench.open(tmp_path, split_layer=2, max_context=128, scheduler=chunks, **HELD[held])
    requests = [bench.sampled(bench.prompt(length, length), params=GREEDY, score=("reference", "value")) for length in (1, 5, 16, 40)]
    bench.run(*requests)
    for request in requests:
        sample = request.samples[0]
        reference = bench.unsplit_logprobs([*sample.prompt, *sample.completion])[len(sample.prompt) - 1 :]
        wanted = [reference[index, token].item() for index, token in enumerate(sample.completion)]
        assert sum(abs(a - b) for a, b in zip(sample.logprobs, wanted, strict=True)) / len(wanted) < 0.25, "of 32 numbers a row, at random"
        assert scores(sample)["reference"].result.logprobs == pytest.approx(sample.logprobs, abs=TOLERANCE)
    bench.assert_blocks_returned()


def test_neighbours_chunks_and_cache(llama_folder: Path) -> None:
    lengths = (70, 33, 16, 3, 129)
    alone = Bench.open(llama_folder, split_layer=2, **INT8)
    wanted = {}
    for length in lengths:
        request = alone.given(alone.prompt(length, length), alone.prompt(20, 1), score=("reference",))
        alone.run(request)
        wanted[length] = scores(request.samples[0])["reference"].result.logprobs
    chunked = Bench.open(llama_folder, split_layer=2, scheduler=SchedulerLimits(chunk_tokens=7, min_chunk_tokens=1), **INT8)
    for bench in (chunked, alone):
        requests = [bench.given(bench.prompt(length, length), bench.prompt(20, 1), score=("reference",)) for length in lengths]
        bench.run(*requests)
        for length, request in zip(lengths, requests, strict=True):
            found = scores(request.samples[0])["reference"].result.logprobs
            assert found == pytest.approx(wanted[length], abs=TOLERANCE)
            assert float(abs(found - wanted[length]).mean()) < TOLERANCE / 5


def test_a_quarter_of_the_bytes_and_counted_as_they_are(llama_folder: Path) -> None:
    """A head takes what the budget was told before it was built; a tied output is the trunk's, in whatever form that has."""
    plain, small = Bench.open(llama_folder, split_layer=2), Bench.open(llama_folder, split_layer=2, **INT8)
    for bench in (plain, small):
        for live, output in ((bench.policy("c"), OutputKind.TIED), (bench.scalar("d"), OutputKind.SCORE)):
            assert isinstance(live.module, FastHead)
            schema = bench.spec.head_schema(output)
            assert live.module.num_bytes == sum(itertools.starmap(bench.engine.heads.weight_bytes, schema.items()))
    assert small.policy("e").module.num_bytes < 0.45 * plain.policy("e").module.num_bytes, "32 numbers a row: a scale weighs much"
    first, second = small.policy("f").module, small.policy("g").module
    assert isinstance(first, FastHead)
    assert isinstance(second, FastHead)
    assert first._project is second._project is small.engine.trunk.module.tied_output  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["llama", "mistral"])  # tied, and with an output of its own
@pytest.mark.parametrize("held", [INT8, {"trunk_quantization": "int8"}], ids=["both", "trunk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_in_a_precision_of_their_own(family: str, held: dict[str, bool], dtype: torch.dtype, tmp_path: Path) -> None:
    """A tied output was quantised with the trunk, so that log-probs were tenths from those of the trainer's own head."""
    save_tiny(family, tmp_path)
    form, plain = OutputForm("none", dtype), Bench.open(tmp_path, split_layer=2, max_context=128)
    bench = Bench.open(tmp_path, split_layer=2, max_context=128, output=form, **held)
    states = torch.randn(1, 5, bench.spec.d_model)
    weight = plain.model.get_output_embeddings().weight.detach()
    for live in (bench.policy("c"), bench.policy("d")):
        assert isinstance(live.module, FastHead)
        logits = live.module._project(states[0]).float()
        assert (logits - states[0] @ weight.T).abs().max() < (2e-5 if dtype == torch.float32 else 0.05) * states.abs().max()
        schema = bench.spec.head_schema(live.module.output)
        assert live.module.num_bytes == sum(itertools.starmap(bench.engine.heads.weight_bytes, schema.items()))
    taken = bench.engine.trunk.num_bytes - Bench.open(tmp_path, split_layer=2, max_context=128, **held).engine.trunk.num_bytes
    copy = weight.nbytes // 2 if dtype == torch.bfloat16 else 0  # float32 reads the embedding itself
    assert taken == (copy - weight.numel() - 4 * len(weight) if bench.spec.tied else 0)


def test_a_float32_output_gives_the_trainers_log_probs(llama_folder: Path) -> None:
    """With float32 heads behind an int8 trunk: what the plain module makes of the served boundary states, drawn and scored."""
    bench = Bench.open(llama_folder, split_layer=2, output=OutputForm("none", torch.float32), trunk_quantization="int8")
    request = bench.sampled(bench.prompt(20), params=GREEDY, score=("reference",), return_states=True)
    bench.run(request)
    sample = request.samples[0]
    output = OutputKind.TIED if bench.spec.tied else OutputKind.OWN
    head = build_head(bench.spec, bench.tensors["a"], output, bench.trunk.embedding, torch.float32)
    assert sample.states is not None
    first, length = len(sample.prompt) - 1, len(sample.prompt) + len(sample.completion)
    with torch.no_grad():
        logits = head(sample.states[None], torch.arange(length)[None], torch.arange(first, length - 1))
    wanted = logits.log_softmax(-1)[torch.arange(len(sample.completion)), torch.tensor(sample.completion)].tolist()
    assert sample.logprobs == pytest.approx(wanted, abs=1e-4)
    assert scores(sample)["reference"].result.logprobs == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("setting", ["trunk_quantization", "head_quantization", "output", "is_deterministic"])
def test_what_plain_modules_cannot_do_is_refused(setting: str, llama_folder: Path, tmp_path: Path) -> None:
    save_tiny("gemma2", tmp_path)
    named, asked = {
        "trunk_quantization": ("trunk_dtype", "int8"),
        "head_quantization": ("head_dtype", "int8"),
        "output": ("output_dtype", OutputForm("none", torch.float32)),
        "is_deterministic": ("deterministic", True),
    }[setting]
    for folder, layers in ((llama_folder, {"is_fast": False}), (tmp_path, {})):
        with pytest.raises(FailedPrecondition) as caught:
            Bench.open(folder, split_layer=2, max_context=128, **{setting: asked}, **layers)
        assert caught.value.field == named


def test_a_broken_head_fails_its_own_sample_only(llama_folder: Path) -> None:
    """A row whose scale is not finite must not come out as a number."""
    bench = Bench.open(llama_folder, split_layer=2, **INT8)

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"].fill_(float("nan"))

    bench.activate(2, policy=bench.policy("bad", poison), value=bench.scalar("b"))
    request = bench.sampled(bench.prompt(9), params=GREEDY)
    bench.run(request)
    assert request.samples[0].finish_reason.name == "FAILED"


@pytest.mark.skipif(not HAS_HALVES, reason="this processor does not convert float16")
def test_int8_keeps_keys_and_values_in_half_the_bytes(llama_folder: Path) -> None:
    """So the same budget holds more text. Boundary states, which heads' keys are rebuilt from, stay as they are."""
    engines = [Bench.open(llama_folder, split_layer=2, **held).engine for held in (INT8, {})]
    (int8, plain), (int8_heads, plain_heads) = ([engine.trunk.cache.kv for engine in engines], [engine.heads.cache for engine in engines])
    assert (int8.shape.kept_dtype, int8_heads.shape.kept_dtype) == (torch.float16, torch.float16)
    assert {layer.dtype for layer in int8.layers} == {torch.float16}
    assert 2 * int8.shape.kv_bytes(1) == plain.shape.kv_bytes(1)
    assert int8.num_slots > 1.4 * plain.num_slots
    assert int8_heads.num_slots > 1.4 * plain_heads.num_slots
    assert {engine.trunk.cache.states.dtype for engine in engines} == {torch.float32}
