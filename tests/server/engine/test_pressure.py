"""Small pools, many requests, random cancels: everything ends, every block comes back, nothing deadlocks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from polyhead.heads.errors import Aborted, PolyheadError
from polyhead.server.engine.build import HEAD_BLOCKS_PER_BLOCK
from polyhead.server.engine.scheduler import SchedulerLimits
from polyhead.server.engine.sequence import Phase, SamplingParams
from tests.server.engine.harness import Bench

ALL_HEADS = ("reference", "value", "preference", "rule")
RULES = {"x": (10, 11, 12, 13), "y": (10, 11, 20), "z": tuple(range(30, 60))}


@pytest.fixture
def small(llama_folder: Path) -> Bench:
    """Room for little more than two contexts of 128 tokens."""
    shape_bytes = 16 * (2 * 2 * 2 * 8 + 32) * 4 + HEAD_BLOCKS_PER_BLOCK * 16 * 2 * 2 * 2 * 8 * 4
    return Bench.open(
        llama_folder, 2, cache_bytes=24 * shape_bytes, max_context=128, scheduler=SchedulerLimits(chunk_tokens=32, min_chunk_tokens=8)
    )


def test_more_work_than_the_pools_hold(small: Bench) -> None:
    requests = [
        small.sampled(small.prompt(20 + 3 * i, i), n=3, params=SamplingParams(max_new_tokens=9), score=ALL_HEADS, rules=RULES)
        for i in range(12)
    ]
    small.run(*requests)
    assert all(len(sample.completion) == 9 for request in requests for sample in request.samples)
    small.assert_blocks_returned()


def test_two_hundred_random_cancels(small: Bench) -> None:
    """In every state: queued, waiting for a block, in prefill, decoding, scoring."""
    chance = random.Random(4)
    alive = []
    for index in range(200):
        length = chance.randrange(1, 70)
        request = small.sampled(
            small.prompt(length, index % 7), n=chance.randrange(1, 4), params=SamplingParams(max_new_tokens=chance.randrange(1, 20)),
            score=ALL_HEADS if chance.random() < 0.5 else ("reference", "rule"), rules=RULES,
        )
        small.engine.submit(request)
        alive.append(request)
        for _ in range(chance.randrange(3)):
            small.engine._empty_inbox()
            small.engine.step()
        victim = chance.choice(alive)
        small.engine.cancel(victim, Aborted("gone"))
        small.engine._empty_inbox()
        small.engine.tree.check()
        alive = [request for request in alive if not request.is_ended]
    for request in alive:
        small.engine.cancel(request, Aborted("gone"))
    small.engine._empty_inbox()
    small.assert_blocks_returned()


def test_a_cancelled_writer_leaves_its_work_to_those_who_wait(small: Bench) -> None:
    """The second request waits for the first one's blocks; when the first goes, the second computes them itself."""
    prompt = small.prompt(90)
    first, second = (small.sampled(prompt, params=SamplingParams(max_new_tokens=2)) for _ in range(2))
    for request in (first, second):
        small.engine.submit(request)
    small.engine._empty_inbox()
    small.engine.step()
    assert second.samples[0].phase is Phase.WAITING
    small.engine.cancel(first, Aborted("gone"))
    small.run()
    while not second.is_ended:
        small.engine._empty_inbox()
        small.engine.step()
    assert len(second.samples[0].completion) == 2
    small.assert_blocks_returned()


def test_a_failing_step_ends_its_batch_and_the_engine_goes_on(small: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    request = small.sampled(small.prompt(20))
    small.engine.submit(request)
    small.engine._empty_inbox()

    def explode(*_: object) -> None:
        raise RuntimeError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(small.engine.trunk, "forward", explode)
        small.engine._step_safely()
    assert request.is_ended
    ended = small.events[-1]
    assert isinstance(ended.error, PolyheadError)
    assert "secret" not in ended.error.message
    small.assert_blocks_returned()
    small.run(small.sampled(small.prompt(20)))


def test_a_long_prefill_does_not_stop_decoding(small: Bench) -> None:
    """With a chunk of 32, somebody who decodes gets a token in every step of another's 120-token prefill."""
    decoding = small.sampled(small.prompt(5), params=SamplingParams(max_new_tokens=20))
    small.engine.submit(decoding)
    small.engine._empty_inbox()
    small.engine.step()
    small.engine.submit(small.sampled(small.prompt(90, 1), params=SamplingParams(max_new_tokens=1)))
    small.engine._empty_inbox()
    for _ in range(3):
        before = len(decoding.samples[0].completion)
        small.engine.step()
        assert len(decoding.samples[0].completion) == before + 1
