"""FOLLOW: a running sample goes on with a new version between two tokens, exactly, at the price of a head's share of a prefill."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyhead.heads.format.errors import Aborted
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.layers.fast import FastHead, FastTrunk
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.live import ActiveSet, LiveHead
from polyhead.server.engine.work.request import OnSwap, Phase, Request, Sample
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from tests.server.engine.harness import Bench, scores

THIRTY = SamplingParams(max_new_tokens=30)


def other(seed: int) -> Callable[[dict[str, Tensor]], None]:
    """Another policy: every weight of its layers moved, so that another version's keys and values would be wrong."""

    def change(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in sorted(tensors.items()):
            if ".layers." in name and tensor.ndim == 2:
                tensor += 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator)

    return change


def swap(bench: Bench, generation: int, digest: str, version: int = 0) -> None:
    """Activate the policy of this digest: "a" is the checkpoint's own, "2" another one, "3" another one again."""
    policy = bench.policy(digest, (lambda tensors: None) if digest == "a" else other(int(digest)))
    bench.activate(generation, policy=policy, value=bench.engine.active.heads["value"].live, policy_version=version)


def follower(bench: Bench, num_tokens: int = 20, n: int = 1, params: SamplingParams = THIRTY, seed: int = 0, **fields: object) -> Request:
    return bench.sampled(bench.prompt(num_tokens, seed), n=n, params=params, on_swap=OnSwap.FOLLOW, **fields)


def spans_of(sample: Sample) -> list[tuple[int, int, str]]:
    """(first token, generation, digest) of each span."""
    return [(span.start, span.generation, span.head.live.digest) for span in sample.spans]


def assert_each_span_is_its_own_versions(sample: Sample, folder: Path) -> None:
    """Its log-probs equal what a cold engine, which has never seen another version, says about the same tokens."""
    ends = [span.start for span in sample.spans[1:]] + [len(sample.completion)]
    for span, end in zip(sample.spans, ends, strict=True):
        cold = Bench.open(folder, split_layer=2)
        swap(cold, 9, span.head.live.digest)
        scored = cold.given(sample.prompt, sample.completion, score=("policy",))
        cold.run(scored)
        expected = scores(scored.samples[0])["policy"].result.logprobs
        assert sample.logprobs[span.start : end] == pytest.approx(expected[span.start : end].tolist(), abs=1e-4)


def leases(bench: Bench, *heads: LiveHead) -> list[int]:
    """Open requests on each head."""
    return [bench.engine.leased_digests().get(head.digest, 0) for head in heads]


def policy(bench: Bench) -> LiveHead:
    return bench.engine.active.heads["policy"].live


# what follows, and what it costs


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


# swaps in between


@pytest.fixture
def slow(llama_folder: Path) -> Bench:
    """Reads a text again in chunks of 8, so that there is time for another swap."""
    return Bench.open(llama_folder, 2, scheduler=SchedulerLimits(chunk_tokens=8, min_chunk_tokens=8))


def reading_again(bench: Bench, **fields: object) -> Sample:
    """A sample of a 100-token prompt in the middle of reading it again with version 2."""
    request = follower(bench, 100, params=SamplingParams(max_new_tokens=40), **fields)
    bench.start(request, steps=16)
    swap(bench, 2, "2")
    bench.start(steps=4)
    [sample] = request.samples
    assert len(sample.completion) > 4
    assert 0 < sample.successor.cursor < 100
    return sample


def test_another_swap_heads_for_the_newest(slow: Bench, llama_folder: Path) -> None:
    sample = reading_again(slow)
    swap(slow, 3, "3")
    slow.engine.tree.check()
    assert {digest for block in sample.sequence.blocks for digest, of in block.head_blocks.items() if of.num_users} == {"a"}
    slow.finish(sample.request)
    assert [digest for _, _, digest in spans_of(sample)] == ["a", "3"]
    assert_each_span_is_its_own_versions(sample, llama_folder)
    slow.assert_blocks_returned()


def test_a_swap_back_ends_the_reading(slow: Bench) -> None:
    sample = reading_again(slow)
    before = slow.engine.counters.rebuilt_tokens
    swap(slow, 3, "a", version=1)
    slow.finish(sample.request)
    assert spans_of(sample) == [(0, 1, "a")]
    assert slow.engine.counters.rebuilt_tokens == before
    slow.assert_blocks_returned()


@pytest.mark.parametrize("version", [2, 3])
def test_a_swap_to_the_same_weights_goes_on_reading(slow: Bench, version: int) -> None:
    """The same version, or another one with its digest: what has been read is kept, and the newest number is told."""
    sample = reading_again(slow)
    swap(slow, 3, "2", version=version)
    slow.finish(sample.request)
    assert [(generation, digest) for _, generation, digest in spans_of(sample)] == [(1, "a"), (3, "2")]
    assert sample.last_head.version == version
    assert slow.engine.counters.rebuilt_tokens == 100 + sample.spans[1].start - 1
    slow.assert_blocks_returned()


def test_a_prefill_that_is_under_way_follows_when_it_has_drawn(slow: Bench, llama_folder: Path) -> None:
    request = follower(slow, 100, params=SamplingParams(max_new_tokens=40))
    slow.start(request, steps=6)
    [sample] = request.samples
    assert not sample.completion
    swap(slow, 2, "2")
    slow.finish(request)
    assert sample.spans[-1].head.live.digest == "2"
    assert slow.engine.counters.trunk_tokens == 100 + 39
    assert_each_span_is_its_own_versions(sample, llama_folder)


def test_a_version_that_has_read_the_prompt_before_takes_over_at_once(slow: Bench, llama_folder: Path) -> None:
    """Its keys were cached by others: it draws before the old version has come to the prompt's end, and reads nothing again."""
    prompt = slow.prompt(97)  # six full blocks, and the token whose row draws
    swap(slow, 2, "2")
    slow.run(slow.sampled(prompt, params=SamplingParams(max_new_tokens=1)))
    swap(slow, 3, "a")
    request = slow.sampled(prompt, params=THIRTY, on_swap=OnSwap.FOLLOW)
    slow.start(request, steps=3)
    swap(slow, 4, "2")
    slow.start(steps=1)
    [sample] = request.samples
    assert len(sample.completion) == 1
    slow.finish(request)
    assert spans_of(sample) == [(0, 4, "2")]
    assert slow.engine.counters.rebuilt_tokens == 0
    assert_each_span_is_its_own_versions(sample, llama_folder)


@pytest.mark.parametrize("ending", ["length", "cancel", "text", "step", "logits"])
def test_an_end_in_the_middle_gives_everything_back(slow: Bench, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    sample = reading_again(slow)
    neighbour = slow.sampled(slow.prompt(9, 9), params=THIRTY)
    slow.start(neighbour)
    old, new = sample.reading.head.live, policy(slow)

    def explode(*_: object) -> None:
        raise RuntimeError

    if ending == "length":
        sample.params = dataclasses.replace(sample.params, max_new_tokens=len(sample.completion) + 1)
        slow.start(steps=1)  # the old version's run ends the sample; the new one's stands behind it in the same step
    elif ending == "cancel":
        slow.engine.cancel(sample.request, Aborted("gone"))
        slow.engine._empty_inbox()
    elif ending == "text":
        sample.error = "the text broke"
        slow.start(steps=1)
    elif ending == "logits":
        assert isinstance(old.module, FastHead)
        old.module.norm.weight.fill_(float("nan"))
        slow.start(steps=1)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(slow.engine.heads, "forward", explode)
            slow.engine._step_safely()
    assert sample.request.is_ended
    assert sample.successor is None
    assert leases(slow, old, new) == [0, 0 if neighbour.is_ended else 1]
    assert all(span.head.version == 1 for span in sample.spans)
    slow.finish(neighbour)
    slow.assert_blocks_returned()


# who follows, and what stays


def test_pinned_neighbours_are_not_disturbed(bench: Bench) -> None:
    """Bit for bit on compiled layers. Plain ones round by the number of rows: by 1.1e-5 after thirty tokens, on one processor."""
    alone = bench.sampled(bench.prompt(20), params=THIRTY)
    bench.run(alone)
    pinned, followed = bench.sampled(bench.prompt(20), params=THIRTY), follower(bench, seed=3)
    bench.start(pinned, followed, steps=8)
    swap(bench, 2, "2")
    bench.finish(pinned, followed)
    assert pinned.samples[0].completion == alone.samples[0].completion
    tolerance = 0.0 if isinstance(bench.engine.trunk.module, FastTrunk) else 3e-5
    assert pinned.samples[0].logprobs == pytest.approx(alone.samples[0].logprobs, rel=0.0, abs=tolerance)
    assert spans_of(pinned.samples[0]) == [(0, 1, "a")]
    assert len(followed.samples[0].spans) == 2


def test_an_explicit_version_stays(bench: Bench) -> None:
    """An arm that names its version is pinned by its name; beside it the other arm follows."""
    served = bench.engine.active.heads["policy"]
    both, explicit = follower(bench, n=2), follower(bench, seed=1)
    for request in (both, explicit):
        request.pinned = {"policy@1": served}
        request.head_kinds = {**request.head_kinds, "policy@1": HeadKind.POLICY}
        request.samples[0].head_name = "policy@1"
    bench.start(both, explicit, steps=8)
    swap(bench, 2, "2")
    assert (bench.report.num_pinned, bench.report.num_following) == (1, 1)
    bench.finish(both, explicit)
    assert [[digest for _, _, digest in spans_of(sample)] for sample in both.samples] == [["a"], ["a", "2"]]
    assert spans_of(explicit.samples[0]) == [(0, 1, "a")]


def test_the_report_counts_three_kinds_of_requests(bench: Bench) -> None:
    kinds = [OnSwap.PIN, OnSwap.ABORT, OnSwap.ABORT, OnSwap.FOLLOW, OnSwap.FOLLOW, OnSwap.FOLLOW]
    requests = [bench.sampled(bench.prompt(20, i), params=THIRTY, on_swap=kind) for i, kind in enumerate(kinds)]
    bench.start(*requests, steps=8)
    swap(bench, 2, "2")
    assert (bench.report.num_pinned, bench.report.num_aborted, bench.report.num_following) == (1, 2, 3)
    bench.finish(*requests)


@pytest.mark.parametrize("heads", [("value",), ("preference", "value")])
def test_a_request_that_only_scores_follows_nothing(slow: Bench, heads: tuple[str, ...]) -> None:
    """Its samples are drawn: it goes on with what it has, and is counted so."""
    request = follower(slow, 100, params=SamplingParams(max_new_tokens=1), score=heads)
    slow.start(request, steps=14)
    assert request.samples[0].phase is Phase.SCORING
    swap(slow, 2, "2")
    assert (slow.report.num_pinned, slow.report.num_following) == (1, 0)
    slow.finish(request)
    assert spans_of(request.samples[0]) == [(0, 1, "a")]


def test_scoring_keeps_the_lease(bench: Bench) -> None:
    """One lease: the scores of a sample that followed are those of the generation that the request began with."""
    names = ("policy", "reference", "value")
    request = follower(bench, score=names)
    bench.start(request, steps=8)
    old = request.lease.heads["policy"].live
    bench.activate(2, policy=bench.policy("2", other(2)), value=bench.scalar("c", seed=5))
    bench.start(steps=4)
    assert request.samples[0].head.version == 2
    assert leases(bench, old, policy(bench)) == [1, 1]
    bench.finish(request)
    [sample] = request.samples
    found = scores(sample)
    assert [found[name].head.version for name in names] == [1, 1, 1]
    plain = bench.unsplit_logprobs([*sample.prompt, *sample.completion])
    expected = [plain[19 + index, token].item() for index, token in enumerate(sample.completion)]
    assert found["policy"].result.logprobs == pytest.approx(expected, abs=1e-4)
    assert leases(bench, old, policy(bench)) == [0, 0]


def test_versions_are_held_from_the_flip_until_the_last_sample_has_left_them(llama_folder: Path) -> None:
    bench = Bench.open(llama_folder, 2, scheduler=SchedulerLimits(max_running=2, chunk_tokens=8, min_chunk_tokens=8))
    old = policy(bench)
    request = follower(bench, 60, n=3, params=SamplingParams(max_new_tokens=60))
    bench.start(request, steps=20)
    assert leases(bench, old) == [1]
    swap(bench, 2, "2")
    new = policy(bench)
    assert leases(bench, old, new) == [1, 1]
    while len({sample.head.version for sample in request.samples[:2]}) < 2:
        bench.engine.step()
    assert leases(bench, old, new) == [1, 1]  # one has switched, one still draws with the old weights
    while request.samples[0].head.version + request.samples[1].head.version < 4:
        bench.engine.step()
    assert leases(bench, old, new) == [0, 1]  # the third one waits, and will start on the new version
    swap(bench, 3, "3")
    assert leases(bench, old, new, policy(bench)) == [0, 1, 1]
    bench.finish(request)
    assert leases(bench, old, new, policy(bench)) == [0, 0, 0]
    assert spans_of(request.samples[2]) == [(0, 3, "3")]
    bench.assert_blocks_returned()


def test_an_old_version_goes_with_its_last_sample(slow: Bench) -> None:
    """A sample that ends before it could switch lets the old weights go, though its request runs on."""
    request = follower(slow, 10, params=SamplingParams(max_new_tokens=90))
    slow.add_samples(request, slow.prompt(100, 3), params=SamplingParams(max_new_tokens=40))
    slow.start(request, steps=20)
    old = policy(slow)
    short, long = request.samples
    swap(slow, 2, "2")
    while short.head.version == 1:
        slow.engine.step()
    assert long.successor is not None
    assert leases(slow, old, policy(slow)) == [1, 1]
    long.params = dataclasses.replace(long.params, max_new_tokens=len(long.completion) + 1)
    slow.start(steps=1)
    assert (long.phase, short.phase) == (Phase.DONE, Phase.GENERATING)
    assert leases(slow, old, policy(slow)) == [0, 1]
    slow.finish(request)
    slow.assert_blocks_returned()


@pytest.mark.parametrize("change", ["gone", "another kind"])
def test_a_name_that_went_keeps_its_samples(bench: Bench, change: str) -> None:
    request = follower(bench)
    bench.start(request, steps=8)
    heads: Mapping[str, object] = {name: head for name, head in bench.engine.active.heads.items() if name != "policy"}
    if change == "another kind":
        heads = {**heads, "policy": heads["value"]}
    flipped = bench.engine.activate(ActiveSet(2, heads))
    bench.engine._empty_inbox()
    assert (flipped.result().num_pinned, flipped.result().num_following) == (1, 0)
    bench.finish(request)
    assert spans_of(request.samples[0]) == [(0, 1, "a")]
