"""FOLLOW: a running sample goes on with a new version between two tokens, exactly, at the price of a head's share of a prefill."""

from __future__ import annotations

from pathlib import Path

from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.request import OnSwap, Phase
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from tests.server.engine.harness import Bench
from tests.server.engine.schedule.following import (
    THIRTY,
    assert_each_span_is_its_own_versions,
    follower,
    spans_of,
    swap,
)


def test_log_probs_after_the_switch_are_the_new_versions(bench: Bench, llama_folder: Path) -> None:
    request = follower(bench)
    bench.start(request, steps=8)
    swap(bench, 2, "2")
    bench.finish(request)
    [sample] = request.samples
    assert spans_of(sample) == [(0, 1, "a"), (9, 2, "2")]  # 8 tokens were drawn; while the ninth was, the text was read again
    assert (len(sample.completion), sample.finish_reason, sample.last_head.version) == (30, FinishReason.LENGTH, 2)
    assert_each_span_is_its_own_versions(sample, llama_folder)
    bench.assert_blocks_returned()


def test_it_costs_a_heads_share_of_a_prefill(bench: Bench) -> None:
    """No trunk token; the text so far through the new head once, counted exactly."""
    request = follower(bench, 50)
    bench.start(request, steps=8)
    swap(bench, 2, "2")
    bench.finish(request)
    counted = bench.engine.counters
    num_read_again = 50 + request.samples[0].spans[1].start - 1  # the last token drawn has not been read by any head yet
    assert counted.trunk_tokens == 50 + 29
    assert counted.rebuilt_tokens == num_read_again
    assert counted.head_tokens == 50 + 29 + num_read_again


def test_samples_of_one_prompt_read_it_again_once(bench: Bench, llama_folder: Path) -> None:
    """The prompt once, its end inside a block, too; each sample its own tokens."""
    request = follower(bench, 70, n=4)
    bench.start(request, steps=12)
    assert all(sample.phase is Phase.GENERATING for sample in request.samples)
    swap(bench, 2, "2")
    bench.finish(request)
    starts = [sample.spans[1].start for sample in request.samples]
    assert bench.engine.counters.rebuilt_tokens == sum(70 + start - 1 for start in starts) - 3 * 70
    assert bench.engine.counters.trunk_tokens == 70 + 4 * 29
    for sample in request.samples:
        assert_each_span_is_its_own_versions(sample, llama_folder)
    bench.assert_blocks_returned()


def test_the_old_version_serves_while_the_new_one_reads(llama_folder: Path) -> None:
    """In chunks of 8: in every step a token is drawn, and no step takes more than its chunk beside it."""
    bench = Bench.open(llama_folder, 2, scheduler=SchedulerLimits(chunk_tokens=8, min_chunk_tokens=8))
    request = follower(bench, 100, params=SamplingParams(max_new_tokens=40))
    bench.start(request, steps=20)
    [sample] = request.samples
    num_before = len(sample.completion)
    assert num_before > 0
    swap(bench, 2, "2")
    while len(sample.spans) == 1:
        drawn, read = len(sample.completion), bench.engine.counters.head_tokens
        bench.engine.step()
        assert len(sample.completion) == drawn + 1
        assert bench.engine.counters.head_tokens - read <= 8 + 1
    num_read_again = 100 + sample.spans[1].start - 1
    assert sample.spans[1].start - num_before == -(-num_read_again // 8)
    bench.finish(request)
    assert bench.engine.counters.rebuilt_tokens == num_read_again
    assert_each_span_is_its_own_versions(sample, llama_folder)


def test_going_back_finds_the_keys_that_are_still_there(bench: Bench, llama_folder: Path) -> None:
    """Rollback is an activation like any other; only what another version drew meanwhile is read again."""
    request = follower(bench, 60, params=SamplingParams(max_new_tokens=40))
    bench.start(request, steps=8)
    swap(bench, 2, "2")
    bench.start(steps=6)
    before = bench.engine.counters.rebuilt_tokens
    swap(bench, 3, "a", version=1)
    bench.finish(request)
    [sample] = request.samples
    assert [digest for _, _, digest in spans_of(sample)] == ["a", "2", "a"]
    assert [span.head.version for span in sample.spans] == [1, 2, 1]
    assert bench.engine.counters.rebuilt_tokens - before == sample.spans[2].start - sample.spans[1].start
    assert_each_span_is_its_own_versions(sample, llama_folder)


def test_draws_depend_on_seed_and_position_alone(bench: Bench) -> None:
    """A version with the same weights changes the spans and nothing else: nothing is read again, every draw is the same."""
    plain = follower(bench)
    bench.run(plain)
    request = follower(bench)
    bench.start(request, steps=8)
    swap(bench, 2, "a")
    bench.finish(request)
    [sample] = request.samples
    assert spans_of(sample) == [(0, 1, "a"), (8, 2, "a")]
    assert [span.head.version for span in sample.spans] == [1, 2]
    assert sample.completion == plain.samples[0].completion
    assert bench.engine.counters.rebuilt_tokens == 0


def test_a_swap_of_other_heads_leaves_the_span_whole(bench: Bench) -> None:
    request = follower(bench)
    bench.start(request, steps=8)
    swap(bench, 2, "a", version=1)
    bench.finish(request)
    assert spans_of(request.samples[0]) == [(0, 1, "a")]
    assert bench.engine.counters.rebuilt_tokens == 0


def test_a_sample_that_was_not_begun_takes_the_new_version_whole(llama_folder: Path) -> None:
    """Waiting for its place, or placed and waiting for another one's keys: nothing to switch, nothing is read twice."""
    bench = Bench.open(llama_folder, 2, scheduler=SchedulerLimits(max_running=2, chunk_tokens=16, min_chunk_tokens=16))
    prompt = bench.prompt(80)
    bench.run(bench.sampled(prompt, params=SamplingParams(max_new_tokens=1)))
    swap(bench, 2, "2")
    before = bench.engine.counters.head_tokens
    request = bench.sampled(prompt, n=3, params=THIRTY, on_swap=OnSwap.FOLLOW)
    bench.start(request, steps=1)
    first, second, third = request.samples
    assert (first.reading.is_started, second.reading.is_started, third.phase) == (True, False, Phase.WAITING)
    swap(bench, 3, "3")
    bench.finish(request)
    assert [digest for _, _, digest in spans_of(second)] == [digest for _, _, digest in spans_of(third)] == ["3"]
    assert second.spans[0].generation == third.spans[0].generation == 3
    assert request.lease.generation == 2  # what it began with
    assert first.spans[-1].head.live.digest == "3"
    num_with_old = 80 + first.spans[1].start - 1
    num_prompt = 80 + 1 + 1  # in five full blocks, read by the first for all three; the other two run the row that draws
    assert bench.engine.counters.head_tokens - before == num_with_old + num_prompt + 3 * 29
    bench.assert_blocks_returned()
