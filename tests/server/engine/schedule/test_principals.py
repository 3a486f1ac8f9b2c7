"""Many callers, one queue: alone one may fill it, together each has its share, and nobody's thousand requests starve another's one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from polyhead.heads.format.errors import Aborted, ResourceExhausted
from polyhead.server.engine.schedule.admission import check_queue
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.events import Finished
from polyhead.server.engine.work.reports import QueueLimits
from polyhead.server.engine.work.request import Priority, Request, Sample
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from tests.server.engine.harness import Bench

LIMITS = QueueLimits(max_requests=16, max_tokens=1600, interactive_share=0.25)


def request(principal: str, num_tokens: int = 10, priority: Priority = Priority.BATCH) -> Request:
    made = Request("r", lambda *_: None, {}, {}, priority=priority, principal=principal)
    made.samples = [Sample(made, 0, 0, 0, [5] * num_tokens, TokenSequence([5] * num_tokens), SamplingParams())]
    made.num_admitted_tokens = num_tokens
    return made


def take_all(queue: list[Request], principal: str, num_tokens: int = 10, priority: Priority = Priority.BATCH) -> int:
    """How many such requests the queue takes."""
    for count in itertools.count():
        wanted = request(principal, num_tokens, priority)
        try:
            check_queue(wanted, queue, LIMITS)
        except ResourceExhausted:
            return count
        queue.append(wanted)
    raise AssertionError


def test_alone_a_principal_fills_the_queue() -> None:
    assert take_all([], "a") == 12  # the share of batch work


def test_in_a_full_queue_one_below_its_share_gets_a_place_and_one_above_does_not() -> None:
    queue: list[Request] = []
    take_all(queue, "a")
    with pytest.raises(ResourceExhausted, match="the queue is full: 12 requests are open, 12 of them yours") as caught:
        check_queue(request("a"), queue, LIMITS)
    assert caught.value.retry_after_s
    assert take_all(queue, "b") == 3  # the reserve
    queue.remove(next(each for each in queue if each.principal == "a"))
    assert (take_all(queue, "a"), take_all(queue, "b")) == (0, 1)


def test_the_same_by_tokens() -> None:
    queue: list[Request] = []
    assert take_all(queue, "a", num_tokens=300) == 4
    assert take_all(queue, "b", num_tokens=400) == 0
    assert take_all(queue, "b", num_tokens=200) == 1


def test_batch_work_gets_no_places_of_interactive_callers() -> None:
    queue: list[Request] = []
    for index in range(6):
        take_all(queue, f"worker-{index}")
    assert sum(each.priority is Priority.BATCH for each in queue) == 15  # the share and its reserve
    assert take_all(queue, "annotator", priority=Priority.INTERACTIVE) > 0


@pytest.fixture
def bench(llama_folder: Path) -> Bench:
    return Bench.open(llama_folder, 2, scheduler=SchedulerLimits(max_running=1))


def sampled(bench: Bench, principal: str, seed: int, length: int = 4, **fields: object) -> Request:
    return bench.sampled(bench.prompt(length, seed), params=SamplingParams(max_new_tokens=2), principal=principal, **fields)


def order(bench: Bench) -> str:
    return "".join(event.sample.request.principal for event in bench.events if isinstance(event, Finished))


def test_one_request_is_not_behind_all_of_somebody_elses(bench: Bench) -> None:
    """First come first served: a worker's thousand requests were a queue of hours for everybody else."""
    many = [sampled(bench, "a", index) for index in range(8)]
    bench.start(*many)
    one = sampled(bench, "b", 50)
    bench.run(one)
    assert len(order(bench)) <= 4
    assert order(bench)[-1] == "b"
    bench.finish(*many)


def test_two_principals_take_turns_by_tokens_and_one_alone_keeps_its_order(bench: Bench) -> None:
    requests = [sampled(bench, "a", index, length=10) for index in range(4)]
    requests += [sampled(bench, "b", 10 + index, length=4) for index in range(8)]
    bench.run(*requests)
    assert order(bench) == "abbabbabbabb"
    ended = [event.sample.request for event in bench.events if isinstance(event, Finished)]
    for principal in "ab":
        serials = [each.serial for each in ended if each.principal == principal]
        assert serials == sorted(serials)


def test_nobody_saves_up_turns_nor_pays_for_what_was_taken_back(bench: Bench) -> None:
    bench.run(*(sampled(bench, "a", index) for index in range(4)))  # b was away meanwhile
    cancelled = [sampled(bench, "b", 20 + index) for index in range(6)]
    bench.start(sampled(bench, "a", 30))
    for each in cancelled:
        bench.engine.submit(each)
    bench.engine._empty_inbox()
    for each in cancelled:
        bench.engine.cancel(each, Aborted("cancelled"))
    bench.engine._empty_inbox()
    bench.events.clear()
    requests = [sampled(bench, principal, 40 + index) for index, principal in enumerate("aabb")]
    bench.run(*requests)
    assert order(bench)[-4:] in ("abab", "baba")


def test_a_batch_that_is_taken_back_gives_its_turns_back_while_others_of_its_principal_wait(bench: Bench) -> None:
    """The request behind it kept its place, behind tokens that nobody would draw: "bbbba"."""
    bench.start(sampled(bench, "x", 0))
    batch = [sampled(bench, "a", 1 + index, length=10) for index in range(5)]
    others = [sampled(bench, principal, 10 + index, length=10) for index, principal in enumerate("abbbb")]
    for each in (*batch, *others):
        bench.engine.submit(each)
    bench.engine._empty_inbox()
    for each in batch:
        bench.engine.cancel(each, Aborted("taken back"))
    bench.engine._empty_inbox()
    bench.events.clear()
    bench.finish(*others)
    assert order(bench).replace("x", "") in ("abbbb", "babbb")
