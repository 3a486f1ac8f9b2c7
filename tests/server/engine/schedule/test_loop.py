"""The engine's own thread: it sleeps only when nothing can go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polyhead.heads.format.kinds import Unfinished
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.request import Request
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.host.threads import use_torch_threads
from tests.server.engine.harness import Bench, Ended

NUM_REQUESTS = 12


@pytest.fixture
def one_at_a_time(llama_folder: Path) -> Bench:
    return Bench.open(llama_folder, 2, scheduler=SchedulerLimits(max_running=1))


def unscorable(bench: Bench) -> list[Request]:
    """An unfinished sample, and a preference head that leaves those out: nothing has to be computed at all."""
    served = bench.engine.active.heads
    bench.activate(2, policy=served["policy"].live, value=served["value"].live, unfinished=Unfinished.OMIT)
    return [bench.given(bench.prompt(5, i), bench.prompt(3, i), score=("preference",)) for i in range(NUM_REQUESTS)]


def cached_states(bench: Bench) -> list[Request]:
    """Boundary states of a text that is in the cache already."""
    bench.run(bench.given(bench.prompt(20), [7], return_states=True))
    return [bench.given(bench.prompt(20), [7], return_states=True) for _ in range(NUM_REQUESTS)]


@pytest.mark.parametrize("work", [unscorable, cached_states])
def test_a_step_that_only_finishes_samples_is_not_followed_by_a_wait(
    one_at_a_time: Bench, monkeypatch: pytest.MonkeyPatch, work: Callable[[Bench], list[Request]]
) -> None:
    """It was taken for idleness: 50 ms for every sample behind the first, although there was nothing to wait for."""
    engine = one_at_a_time.engine
    requests, all_ended, open_while_waiting = work(one_at_a_time), threading.Event(), []
    steps_before, trunk_tokens_before = engine.counters.steps, engine.counters.trunk_tokens

    def deliver(request: Request, events: list[Event]) -> None:
        one_at_a_time.events += events
        if isinstance(events[-1], Ended) and all(request.is_ended for request in requests):
            all_ended.set()

    def wait() -> None:
        open_while_waiting.append(len(engine.requests))
        sleep()

    sleep = engine._wait
    monkeypatch.setattr(engine, "_wait", wait)
    for request in requests:
        request.deliver = deliver
        engine.submit(request)
    engine.start()
    assert all_ended.wait(60)
    engine.stop()
    assert (engine.counters.steps, engine.counters.trunk_tokens) == (steps_before, trunk_tokens_before), "no forward pass was needed"
    assert not any(open_while_waiting)
    one_at_a_time.assert_blocks_returned()


def test_a_step_says_whether_there_was_anything_to_do(one_at_a_time: Bench) -> None:
    engine = one_at_a_time.engine
    assert not engine.step()
    engine.submit(one_at_a_time.sampled(one_at_a_time.prompt(5), params=SamplingParams(max_new_tokens=2)))
    engine._empty_inbox()
    assert [engine.step() for _ in range(3)] == [True, True, False]
    engine.submit(unscorable(one_at_a_time)[0])
    engine._empty_inbox()
    assert [engine.step() for _ in range(2)] == [True, False]


def test_the_engine_keeps_its_threads(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch hands a thread the number that another one set last, when it first asks: two became one after the first push."""
    bench = Bench.open(llama_folder, 2, num_threads=2)
    seen: list[int] = []
    step = bench.engine.step

    def counted() -> bool:
        if not bench.engine.is_idle:  # a look before the other thread's would be the first, and hide it
            seen.append(torch.get_num_threads())
        return step()

    monkeypatch.setattr(bench.engine, "step", counted)
    started = threading.Event()
    bench.engine._inbox.append(started.set)
    bench.engine.start()
    assert started.wait(10.0)
    worker = threading.Thread(target=use_torch_threads, args=(1,))
    worker.start()
    worker.join()
    ended = threading.Event()
    request = bench.sampled(bench.prompt(5), params=SamplingParams(temperature=0.0, max_new_tokens=4))
    request.deliver = lambda _, events: ended.set() if any(isinstance(event, Ended) for event in events) else None
    bench.engine.submit(request)
    assert ended.wait(30.0)
    bench.engine.stop()
    assert set(seen) == {2}
