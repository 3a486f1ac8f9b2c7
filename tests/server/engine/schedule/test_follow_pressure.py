"""FOLLOW in small pools, with swaps every few tokens and random cancels: everything ends, every block comes back, nothing deadlocks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from polyhead.heads.format.errors import Aborted
from polyhead.server.engine import build
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.live import LiveHead
from polyhead.server.engine.work.request import OnSwap, Request, Sample
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from tests.server.engine.harness import Bench
from tests.server.engine.schedule.following import assert_each_span_is_its_own_versions, other

RULES = {"x": (10, 11, 12, 13), "y": (10, 11, 20)}
SCORING = ("reference", "value", "rule")


@pytest.fixture
def tight(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """As many head blocks as trunk blocks: once the pools are full, a second reading beside each sample's own has no room."""
    monkeypatch.setattr(build, "HEAD_BLOCKS_PER_BLOCK", 1)
    shape_bytes = 16 * (2 * 2 * 2 * 8 + 32) * 4 + 16 * 2 * 2 * 2 * 8 * 4
    limits = SchedulerLimits(chunk_tokens=32, min_chunk_tokens=8)
    return Bench.open(llama_folder, 2, cache_bytes=24 * shape_bytes, max_context=128, scheduler=limits)


class Swaps:
    """Three policies in turn, each loaded once, as the residency does it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.policies = [bench.engine.active.heads["policy"].live, bench.policy("2", other(2)), bench.policy("3", other(3))]
        self._generation = 1

    def next(self, policy: LiveHead) -> None:
        self._generation += 1
        version = 1 + self.policies.index(policy)
        self._bench.activate(
            self._generation, policy=policy, value=self._bench.engine.active.heads["value"].live, policy_version=version
        )


def assert_promises_can_be_kept(bench: Bench) -> None:
    """What is promised to readings is there to be taken, beside the floor that scoring needs."""
    scheduler = bench.engine.scheduler
    bench.engine.tree.check()
    held_by_scoring = sum(len(reading.head_blocks) for sample in scheduler.running for reading in sample.todo)
    assert scheduler._num_unpromised_heads() + held_by_scoring >= 0
    for sample in scheduler.running:
        for reading in (sample.reading, sample.successor):
            if reading is not None and reading.is_started and sample.reading.num_reserved:
                num_blocks = -(-sample.most_tokens // bench.engine.tree.block_size)
                assert len(reading.head_blocks) + reading.num_reserved == num_blocks


def assert_spans_are_in_order(sample: Sample) -> None:
    starts = [span.start for span in sample.spans]
    generations = [span.generation for span in sample.spans]
    assert starts == sorted(set(starts))
    assert generations == sorted(set(generations))
    assert not starts or starts[0] == 0
    assert len(sample.completion) == len(sample.logprobs)


def test_all_follow_at_once_in_a_full_pool(tight: Bench, llama_folder: Path) -> None:
    """No room for a second reading of everybody: the old version goes on, and they follow as room comes free."""
    lengths = [24, 14, 24, 14, 24, 24]  # three blocks each; five samples fill the pool, and two of them end early
    requests = [
        tight.sampled(tight.prompt(24, seed), params=SamplingParams(max_new_tokens=length), on_swap=OnSwap.FOLLOW)
        for seed, length in enumerate(lengths)
    ]
    swaps = Swaps(tight)
    tight.start(*requests, steps=12)
    assert all(request.samples[0].completion for request in requests[:5])
    swaps.next(swaps.policies[1])
    num_waiting = 0
    for _ in range(200):
        tight.engine.step()
        assert_promises_can_be_kept(tight)
        successors = [sample.successor for sample in tight.engine.scheduler.running if sample.successor is not None]
        num_waiting += sum(not successor.is_started for successor in successors)
    assert num_waiting
    assert all(request.is_ended for request in requests)
    samples = [request.samples[0] for request in requests]
    assert all(sample.finish_reason is FinishReason.LENGTH for sample in samples)
    assert [len(sample.spans) for sample in samples[:5]].count(2) >= 2
    for sample in samples:
        assert_each_span_is_its_own_versions(sample, llama_folder)
    tight.assert_blocks_returned()


def test_scoring_has_its_floor_beside_followers(tight: Bench) -> None:
    """A follower's second reading must not take the blocks that let one scoring job at a time always run."""
    swaps = Swaps(tight)
    params = SamplingParams(max_new_tokens=24)
    requests = [
        tight.sampled(tight.prompt(30, seed), params=params, on_swap=OnSwap.FOLLOW, score=SCORING, rules=RULES) for seed in range(8)
    ]
    tight.start(*requests, steps=10)
    for turn in range(1, 40):
        swaps.next(swaps.policies[turn % 3])
        for _ in range(4):
            tight.engine.step()
            assert_promises_can_be_kept(tight)
    tight.finish(*requests)
    assert all(sample.finish_reason is FinishReason.LENGTH and len(sample.done) == 4 for request in requests for sample in request.samples)
    tight.assert_blocks_returned()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 4))])
def test_swaps_every_few_tokens_with_random_cancels(tight: Bench, llama_folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    swaps = Swaps(tight)
    alive: list[Request] = []
    started: list[Request] = []
    for index in range(60):
        request = tight.sampled(
            tight.prompt(chance.randrange(1, 70), index % 7), n=chance.randrange(1, 4), on_swap=chance.choice([*OnSwap, OnSwap.FOLLOW]),
            params=SamplingParams(max_new_tokens=chance.randrange(1, 40)), score=SCORING if chance.random() < 0.4 else (), rules=RULES,
        )  # fmt: skip
        tight.start(request)
        started.append(request)
        for _ in range(chance.randrange(6)):
            if chance.random() < 0.4:
                swaps.next(chance.choice(swaps.policies))
            tight.engine.step()
            assert_promises_can_be_kept(tight)
        alive = [request for request in [*alive, request] if not request.is_ended]
        if alive and chance.random() < 0.3:
            tight.engine.cancel(chance.choice(alive), Aborted("gone"))
            tight.engine._empty_inbox()
            tight.engine.tree.check()
    tight.finish(*started)
    tight.assert_blocks_returned()
    assert tight.engine.leased_digests() == {}
    samples = [sample for request in started for sample in request.samples]
    for sample in samples:
        assert_spans_are_in_order(sample)
        assert sample.request.on_swap is OnSwap.FOLLOW or len(sample.spans) < 2
    followed = [sample for sample in samples if len(sample.spans) > 1]
    assert followed
    for sample in followed[:3]:
        assert_each_span_is_its_own_versions(sample, llama_folder)
