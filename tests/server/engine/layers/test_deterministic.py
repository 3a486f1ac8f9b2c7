"""Compiled layers: bit for bit the same, whatever the neighbours, the chunks and the cache. In int8 as in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.request import Request
from polyhead.server.engine.work.sampling import SamplingParams
from tests.heads.models import save_tiny
from tests.server.engine.harness import Bench, scores
from tests.server.engine.layers.test_adapters import Adapted

INT8 = {"trunk_quantization": "int8", "head_quantization": "int8"}
LENGTHS = (70, 33, 16, 130, 3, 129, 17, 1, 40, 64, 65)
DRAWN = SamplingParams(temperature=1.0, max_new_tokens=20)
RULES = {"polite": (7, 8, 9), "short": (7, 8, 11, 12)}


def outcome(request: Request) -> list[Any]:
    """Everything that came out of one sample, to the last bit."""
    sample, found = request.samples[0], scores(request.samples[0])
    policy, value, rules = (found[name].result for name in ("reference", "value", "rule"))
    return [sample.completion, sample.logprobs, policy.logprobs.tolist(), value.values.tolist(), rules]


def requests(bench: Bench, lengths: tuple[int, ...]) -> list[Request]:
    return [
        bench.sampled(bench.prompt(length, length), params=DRAWN, score=("reference", "value", "rule"), rules=RULES)
        for length in lengths
    ]


@pytest.fixture(params=["float32", "int8", "int8 trunk", "int8 heads", "one key head"])
def open_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    changes = {"num_key_value_heads": 1} if request.param == "one key head" else {}
    save_tiny("llama", tmp_path, tie_word_embeddings=True, max_position_embeddings=512, **changes)
    held = {"int8": INT8, "int8 trunk": {"trunk_quantization": "int8"}, "int8 heads": {"head_quantization": "int8"}}.get(request.param, {})
    return lambda **config: Bench.open(tmp_path, split_layer=2, **held, **config)


def test_alone_together_shuffled_chunked_and_cached(open_bench: Any) -> None:
    alone = open_bench()
    wanted = {}
    for length in LENGTHS:
        (request,) = requests(alone, (length,))
        alone.run(request)
        wanted[length] = outcome(request)
    assert len({each[1][0] for each in wanted.values()}) == len(LENGTHS), "the texts differ, and so must the numbers"

    chunks = SchedulerLimits(chunk_tokens=7, min_chunk_tokens=1)
    for bench, lengths in ((open_bench(), LENGTHS), (open_bench(scheduler=chunks), LENGTHS[::-1]), (alone, LENGTHS[3:] + LENGTHS[:3])):
        together = requests(bench, lengths)
        bench.run(*together)
        for length, request in zip(lengths, together, strict=True):
            assert outcome(request) == wanted[length]
        bench.assert_blocks_returned()
    assert together[0].samples[0].num_cached_tokens > 0, "the last round found its texts in the cache"


def test_what_was_drawn_is_what_score_reads(open_bench: Any) -> None:
    """Decoded token by token, then scored by the same head: from kept states, and from a cold engine in one prefill."""
    bench = open_bench()
    (request,) = requests(bench, (37,))
    bench.run(request)
    sample = request.samples[0]
    assert scores(sample)["reference"].result.logprobs.tolist() == sample.logprobs

    cold = open_bench()
    scored = cold.given(sample.prompt, sample.completion, score=("reference",))
    cold.run(scored)
    assert scores(scored.samples[0])["reference"].result.logprobs.tolist() == sample.logprobs


def test_beside_adapters(llama_folder: Path) -> None:
    """A base's samples, and each adapter's, beside the others on that base and alone: another way through the layers, the same bits."""
    bench = Bench.open(llama_folder, split_layer=2)
    base = bench.engine.active.heads["policy"].live
    adapted = Adapted(bench, base, (1, 2))
    lives = (base, *adapted.adapters.values())
    drawn = []
    for is_together in (False, True):
        requests = [adapted.request(live, 30) for live in lives]
        for group in [requests] if is_together else [[request] for request in requests]:
            bench.run(*group)
        drawn.append([(request.samples[0].completion, request.samples[0].logprobs) for request in requests])
    assert drawn[0] == drawn[1]
    assert len({str(each) for each in drawn[0]}) == len(lives)
