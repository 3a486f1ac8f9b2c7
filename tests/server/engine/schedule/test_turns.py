"""Who gets a step's tokens: one head over many texts at once, whoever came first, and nobody before those with a better priority."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.request import Priority, Request
from polyhead.server.engine.work.sampling import SamplingParams
from tests.server.engine.harness import Bench, Finished

LENGTH, CHUNK, NUM_TEXTS = 64, 128, 8
HEADS = ("reference", "value")  # of different weights


@pytest.fixture(params=["fast", "plain"])
def bench(request: pytest.FixtureRequest, llama_folder: Path) -> Bench:
    return Bench.open(llama_folder, 2, scheduler=SchedulerLimits(chunk_tokens=CHUNK, target_step_s=1e9), is_fast=request.param == "fast")


def text(bench: Bench, seed: int, heads: tuple[str, ...] = HEADS, priority: Priority = Priority.BATCH) -> Request:
    """Of which each head reads LENGTH tokens."""
    return bench.given(bench.prompt(LENGTH - 3, seed), bench.prompt(4, seed), is_terminated=True, score=heads, priority=priority)


def finished(bench: Bench) -> list[Request]:
    """Texts, in the order in which they were."""
    return [event.sample.request for event in bench.events if isinstance(event, Finished) and event.sample.head is None]


@pytest.fixture(params=[False, True], ids=["", "beside a stream"])
def streams(request: pytest.FixtureRequest, bench: Bench) -> list[Request]:
    """None, or one that is drawn with the weights that `reference` has, too, for as long as the test lasts."""
    drawn = [bench.sampled(bench.prompt(8), params=SamplingParams(max_new_tokens=100))] if request.param else []
    bench.start(*drawn, steps=2)
    return drawn


def test_every_pass_of_a_head_is_as_large_as_a_step_allows(bench: Bench) -> None:
    """Heads by turns within each text took a pass for each text and head: 16, not 8."""
    requests = [text(bench, seed) for seed in range(NUM_TEXTS)]
    before = bench.engine.counters.as_dict()
    bench.run(*requests)
    after = bench.engine.counters.as_dict()
    assert after["head_tokens"] - before["head_tokens"] == NUM_TEXTS * LENGTH * len(HEADS)
    assert after["head_forwards"] - before["head_forwards"] == NUM_TEXTS * LENGTH * len(HEADS) // CHUNK
    assert finished(bench) == requests


def test_the_first_text_does_not_wait_for_what_others_want_of_its_heads(bench: Bench, streams: list[Request]) -> None:
    """The head that it lacks comes next, however many keep coming for the one that it has had."""
    first = text(bench, 0)
    others = [text(bench, seed, ("reference",)) for seed in range(1, NUM_TEXTS)]
    bench.run(first, *others)
    assert finished(bench).index(first) <= 2, "two texts fit a step: its own reference, beside another's, and then its value"
    assert [stream.is_ended for stream in streams] == [False] * len(streams)


@pytest.mark.parametrize("heads", [HEADS, ("value",)])
def test_a_better_priority_is_not_overtaken(bench: Bench, streams: list[Request], heads: tuple[str, ...]) -> None:
    """By texts that wait for a head of theirs, or one that somebody draws with."""
    others = [text(bench, seed, ("reference", "value")) for seed in range(1, NUM_TEXTS)]
    bench.start(*others, steps=2)
    urgent = text(bench, 0, heads, Priority.INTERACTIVE)
    bench.start(urgent, steps=1)
    are_ended = [each.is_ended for each in (urgent, *streams)]
    assert are_ended == [True] + [False] * len(streams), "its trunk and its heads fit a step"
