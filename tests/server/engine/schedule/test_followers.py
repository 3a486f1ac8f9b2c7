"""FOLLOW: who does and who stays, and for how long the versions are held."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.layers.fast import FastTrunk
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.live import ActiveSet
from polyhead.server.engine.work.request import OnSwap, Phase
from polyhead.server.engine.work.sampling import SamplingParams
from tests.server.engine.harness import Bench, scores
from tests.server.engine.schedule.following import (
    THIRTY,
    follower,
    leases,
    other,
    policy,
    spans_of,
    swap,
)


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
