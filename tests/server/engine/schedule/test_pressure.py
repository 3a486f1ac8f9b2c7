"""Small pools, many requests, random cancels: everything ends, every block comes back, nothing deadlocks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from polyhead.heads.format.errors import Aborted, PolyheadError, Unavailable
from polyhead.server.engine.build import HEAD_BLOCKS_PER_BLOCK
from polyhead.server.engine.schedule import scheduler as scheduler_module
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.batch import Batch, HeadRun, TrunkRun
from polyhead.server.engine.work.block import Block
from polyhead.server.engine.work.request import Phase
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
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


def test_everybody_who_decodes_gets_a_token_in_every_step(small: Bench) -> None:
    """A chunk smaller than the number of decoders left the last of them out until the first had ended."""
    requests = [small.sampled(small.prompt(5, seed), params=SamplingParams(max_new_tokens=9)) for seed in range(12)]
    small.start(*requests, steps=6)
    small.engine.scheduler._chunk = 8
    for _ in range(3):
        before = [len(request.samples[0].completion) for request in requests]
        small.engine.step()
        assert [len(request.samples[0].completion) for request in requests] == [count + 1 for count in before]


def test_the_chunk_shrinks_for_a_heads_prefill_as_for_the_trunks(small: Bench) -> None:
    """A rebuild after a swap has no trunk tokens: its steps took as long as they liked while others decoded."""
    scheduler = small.engine.scheduler
    request = small.sampled(small.prompt(30))
    small.start(request)
    [sample] = request.samples
    decode, prefill = TrunkRun(sample.sequence, 30, 31), HeadRun(sample.reading, 0, 32, 0)
    scheduler.fit_chunk(Batch([decode], [prefill]), seconds=10 * scheduler.limits.target_step_s)
    assert scheduler._chunk == (32 + 3) // 2
    scheduler.fit_chunk(Batch([], [prefill]), seconds=10 * scheduler.limits.target_step_s)  # nobody decodes: nobody is stalled
    assert scheduler._chunk == (32 + 3) // 2
    for _ in range(9):
        scheduler.fit_chunk(Batch([decode], [prefill]), seconds=0.1 * scheduler.limits.target_step_s)
    assert scheduler._chunk == 32


@pytest.mark.parametrize("place", ["tree.place", "cache.copy", "lease"])
def test_a_failing_admission_leaves_nobody_half_admitted(small: Bench, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Samples that had been started stayed in the queue, to be started again; and the one that failed was tried again for ever."""
    small.run(small.sampled(small.prompt(40, 1), params=SamplingParams(max_new_tokens=1)))
    first, failing, later = (small.sampled(small.prompt(20 + 10 * seed, seed)) for seed in range(3))
    for request in (first, failing, later):
        small.engine.submit(request)
    small.engine._empty_inbox()
    owner, name = {
        "tree.place": (small.engine.tree, "place"),
        "cache.copy": (small.engine.tree.cache, "copy"),
        "lease": (scheduler_module, "take_lease"),
    }[place]
    working = getattr(owner, name)
    num_calls = 0

    def explode_once(*arguments: object) -> object:
        nonlocal num_calls
        num_calls += 1
        if num_calls == (1 if place == "cache.copy" else 2):  # the first prompt has nothing to copy
            raise RuntimeError("secret")
        return working(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, explode_once)
        small.engine._step_safely()
    scheduler = small.engine.scheduler
    assert (first.is_ended, failing.is_ended, later.is_ended) == (True, True, False)
    assert (scheduler.waiting, scheduler.running) == (later.samples, [])
    small.engine.tree.check()
    small.finish(later)
    assert later.samples[0].finish_reason is FinishReason.LENGTH
    small.assert_blocks_returned()


def test_heaps_stay_bounded(small: Bench) -> None:
    """Entries went stale faster than evictions took them away: the heap of idle head blocks grew with every request, for ever."""
    for index in range(150):
        small.run(small.sampled(small.prompt(20, index % 5), params=SamplingParams(max_new_tokens=2), score=("reference", "value")))
    assert len(small.engine.tree.heads._idle) <= 2 * small.engine.tree.heads.num_slots + 1
    assert len(small.engine.tree._evictable) <= 2 * small.engine.tree.num_slots + 1
    small.assert_blocks_returned()


def test_salts_come_and_go_in_a_full_cache(small: Bench) -> None:
    """A root was looked up before its last block was evicted: the new block hung on a root that nobody could find."""
    for index in range(60):
        request = small.sampled(small.prompt(100, index), params=SamplingParams(max_new_tokens=1))
        request.samples[0].sequence.salt = f"tenant {index % 3}"
        small.run(request)
        small.engine.tree.check()


def test_a_long_text_loses_its_end_first(small: Bench) -> None:
    """With the front evicted first, one lost head block cost the whole text again."""
    request = small.sampled(small.prompt(100), params=SamplingParams(max_new_tokens=1))
    small.run(request)
    [path] = [blocks for blocks in _paths(small) if len(blocks) == 7]
    small.engine.tree.heads._evict_one()
    assert [bool(block.head_blocks) for block in path] == [True] * 6 + [False]


def _paths(bench: Bench) -> list[list[Block]]:
    def below(block: Block) -> list[list[Block]]:
        children = [child for group in block.children.values() for child in group]
        return [[block, *path] for child in children for path in below(child)] or [[block]]

    return [path[1:] for root in bench.engine.tree._roots.values() for path in below(root)]


def test_head_prefill_after_a_swap_does_not_stop_decoding(small: Bench) -> None:
    """A cached prompt's new head keys took the whole head budget of every step until they were done."""
    prompt = small.prompt(100, 3)
    small.run(small.sampled(prompt, params=SamplingParams(max_new_tokens=1)))
    small.activate(2, policy=small.policy("new"), value=small.scalar("b"))
    long = small.sampled(prompt, params=SamplingParams(max_new_tokens=1))
    decoding = small.sampled(small.prompt(5), params=SamplingParams(max_new_tokens=20))
    for request in (decoding, long):
        small.engine.submit(request)
        small.engine._empty_inbox()
        small.engine.step()
    for _ in range(3):
        before = len(decoding.samples[0].completion)
        small.engine.step()
        assert len(decoding.samples[0].completion) == before + 1


class BrokenText:
    """A tokenizer that fails on its second token, and again at the end."""

    def __init__(self) -> None:
        self.text, self.matched_stop, self._count = "", "", 0

    def push(self, token_id: int) -> str:
        self._count += 1
        if self._count == 2:
            raise ValueError("secret")
        return ""

    def finish(self) -> str:
        raise ValueError("secret")


def test_a_text_that_cannot_be_made_ends_its_own_sample(small: Bench) -> None:
    broken = small.sampled(small.prompt(10), params=SamplingParams(max_new_tokens=5))
    broken.samples[0].text = BrokenText()
    neighbour = small.sampled(small.prompt(11), params=SamplingParams(max_new_tokens=5))
    small.run(broken, neighbour)
    assert broken.samples[0].finish_reason is FinishReason.FAILED
    assert "secret" not in broken.samples[0].error
    assert neighbour.samples[0].finish_reason is FinishReason.LENGTH
    cancelled = small.sampled(small.prompt(12))
    cancelled.samples[0].text = BrokenText()
    small.engine.submit(cancelled)
    small.engine.cancel(cancelled, Aborted("gone"))
    small.engine._empty_inbox()
    assert cancelled.is_ended
    small.assert_blocks_returned()


def test_a_stopped_engine_says_so(small: Bench) -> None:
    """An activation handed to a stopped engine never answered, and its caller waited for five minutes."""
    small.engine.start()
    small.engine.stop()
    with pytest.raises(Unavailable):
        small.engine.activate(small.engine.active)
    with pytest.raises(Unavailable):
        small.engine.submit(small.sampled(small.prompt(5)))
    assert not small.engine.snapshot().is_running
