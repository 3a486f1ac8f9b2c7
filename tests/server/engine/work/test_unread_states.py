"""Boundary states are made as they are read: a reader who stays away costs a window, and holds up nobody else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from polyhead.server.engine.work.events import Finished
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from tests.server.engine.harness import Bench

LENGTH, COUNT = 20, 12


@dataclass
class Window:
    """A reader that has room for some bytes, and counts what waits."""

    room: int
    waiting: int = 0

    def has_room(self, num_begun: int, num_bytes: int) -> bool:
        return self.waiting + num_begun == 0 or self.waiting + num_begun + num_bytes <= self.room

    def hold(self, num_bytes: int) -> None:
        self.waiting += num_bytes


@pytest.fixture
def bench(llama_folder: Path) -> Bench:
    return Bench.open(llama_folder, 2)


def encoding(bench: Bench, reader: Window) -> Request:
    """States of COUNT texts."""
    request = bench.request(return_states=True)
    request.head_kinds, request.reader = {}, reader
    for index in range(COUNT):
        prompt = bench.prompt(LENGTH, index)
        sample = Sample(request, index, 0, 0, prompt, TokenSequence(list(prompt)), SamplingParams())
        request.samples.append(sample)
    return request


def test_an_unread_encode_computes_a_window_and_goes_on_when_it_is_read(bench: Bench) -> None:
    """All of it was computed at once and held: 600 MB for an hour."""
    size = LENGTH * bench.engine.state_bytes
    reader = Window(room=3 * size)
    request = encoding(bench, reader)
    before = bench.engine.counters.trunk_tokens
    bench.start(request, steps=10)
    finished = [event.sample for event in bench.events if isinstance(event, Finished)]
    assert len(finished) == 3
    assert bench.engine.counters.trunk_tokens - before == len(finished) * LENGTH
    other = bench.sampled(bench.prompt(9, 99))
    bench.start(other)
    bench.finish(other)
    assert not request.is_ended
    while not request.is_ended:
        reader.waiting = 0
        bench.start(steps=3)
        assert reader.waiting <= 3 * (size + 2000)
    counters = bench.engine.counters
    assert counters.trunk_tokens - before + counters.cache_hit_tokens == COUNT * LENGTH + 9 + 7, "the same work in all"
    bench.assert_blocks_returned()


def test_a_group_that_leaves_as_one_is_finished_before_the_next_begins(bench: Bench) -> None:
    reader = Window(room=1)
    request = bench.request(return_states=True, holds_groups=True)
    request.reader = reader
    for index in range(2):
        bench.add_samples(request, bench.prompt(LENGTH, index), n=3)
        for sample in request.samples[-3:]:
            sample.prompt_index = index
    bench.start(request, steps=40)
    assert [event.sample.prompt_index for event in bench.events if isinstance(event, Finished)] == [0, 0, 0]
    reader.waiting = 0
    bench.finish(request)
    assert len([event for event in bench.events if isinstance(event, Finished)]) == 6


def test_what_waits_is_counted_with_its_states_and_let_go_when_it_was_sent(bench: Bench) -> None:
    reader = Window(room=1 << 20)
    request = bench.given(bench.prompt(LENGTH), [7, 8], return_states=True, score=("reference",))
    request.reader = reader
    bench.run(request)
    [sample] = request.samples
    assert sample.states is not None
    assert reader.waiting == sample.num_held > sample.states.nbytes
    sample.let_go()
    assert (sample.states, sample.num_held, sample.completion) == (None, 0, [])
