"""Deadlines and load, on a clock that only steps move: who is refused, who waits, and what of the drawn tokens is of use."""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from polyhead.heads.format.errors import ResourceExhausted
from polyhead.server.engine.schedule.deadlines import Verdict
from polyhead.server.engine.schedule.pace import Pace
from polyhead.server.engine.work.batch import Batch, TrunkRun
from polyhead.server.engine.work.events import Ended
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.reports import QueueLimits
from polyhead.server.engine.work.request import Phase, Request
from polyhead.server.engine.work.sampling import Draws, FinishReason, SamplingParams
from tests.server.engine.harness import Bench

BASE_S, ROW_S, TOKEN_S = 0.020, 0.002, 0.0005  # of a step, of each row that decodes in it, of each other token
REPLY, DEADLINE_S = 32, 2.0
CALLS_A_SECOND = 9.0  # about what 15 rows draw, the most that can be in time


@dataclass
class Clock:
    """Seconds that pass only in forward passes."""

    now: float = 0.0
    slowness: float = 1.0  # what else uses the cores

    def __call__(self) -> float:
        return self.now

    def pass_step(self, runs: list[TrunkRun]) -> None:
        rows = sum(run.end - run.start == 1 for run in runs)
        self.now += self.slowness * (BASE_S + ROW_S * rows + TOKEN_S * (sum(run.end - run.start for run in runs) - rows))


@dataclass
class Loaded:
    """An engine whose steps take a set time, and everything that was asked of it."""

    bench: Bench
    clock: Clock
    requests: list[Request] = field(default_factory=list)
    num_refused: int = 0  # at the door

    @property
    def counters(self) -> Any:
        return self.bench.engine.counters

    def ask(self, num_tokens: int = REPLY, deadline_s: float = DEADLINE_S, n: int = 1, **params: Any) -> Request:
        """A request that arrives now. ResourceExhausted if it is refused at the door."""
        number, now = len(self.requests), self.clock.now
        params = {"ignore_eos": True, **params}
        request = self.bench.sampled(
            self.bench.prompt(8, number), n, SamplingParams(max_new_tokens=num_tokens, temperature=0.0, **params), submitted_at=now
        )
        request.deadline_at = request.due_at = now + deadline_s
        self.requests.append(request)
        try:
            self.bench.engine.submit(request)
        except ResourceExhausted:
            request.is_ended, self.num_refused = True, self.num_refused + 1
            raise
        return request

    def step(self) -> bool:
        self.bench.engine._empty_inbox()
        return self.bench.engine.step()

    def fill(self) -> None:
        """As many requests as run at once, and one or more that wait."""
        while not self.bench.engine.scheduler.waiting:
            self.ask()
            self.step()

    def run(self) -> None:
        while not self.bench.engine.is_idle:
            self.step()

    def offer(self, rate: float, seconds: float, seed: int = 0) -> float:
        """Requests at random, `rate` a second; the goodput in tokens a second. Ends when nothing is open."""
        chance, end_at, at = random.Random(seed), self.clock.now + seconds, self.clock.now
        started_at, first = self.clock.now, len(self.requests)
        while at < end_at:
            at += chance.expovariate(rate)
            while self.clock.now < at:
                if not self.step():
                    self.clock.now = at
            with contextlib.suppress(ResourceExhausted):
                self.ask()
        self.run()
        whole = [request for request in self.requests[first:] if is_whole(request)]
        return len(whole) * REPLY / (max(end_at, self.clock.now) - started_at)


def is_whole(request: Request) -> bool:
    """Whether every sample came to its end; none does after its deadline."""
    return bool(request.samples) and all(each.is_whole and each.completion for each in request.samples)


@pytest.fixture
def loaded(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    bench, clock = Bench.open(llama_folder, 2, queue=QueueLimits(max_requests=1024)), Clock()
    bench.engine.requests.clock = clock
    forward = bench.engine.trunk.forward

    def timed(runs: list[TrunkRun]) -> None:
        clock.pass_step(runs)
        forward(runs)

    monkeypatch.setattr(bench.engine.trunk, "forward", timed)
    return Loaded(bench, clock)


@pytest.fixture
def paced(loaded: Loaded) -> Loaded:
    """With a pace that is known, and nothing open."""
    loaded.ask()
    loaded.ask()
    loaded.run()
    return loaded


def test_more_load_is_no_less_goodput(loaded: Loaded) -> None:
    """At 3x every row ran at once, none was done in time, and nine of ten drawn tokens were thrown away."""
    goodput = {load: loaded.offer(load * CALLS_A_SECOND, seconds=5.0) for load in (0.5, 0.75, 1.0)}
    peak, drawn, wasted = max(goodput.values()), loaded.counters.generated_tokens, loaded.counters.wasted_tokens
    assert loaded.offer(3 * CALLS_A_SECOND, seconds=5.0) >= 0.9 * peak
    assert loaded.offer(10 * CALLS_A_SECOND, seconds=5.0) >= 0.9 * peak
    assert loaded.counters.wasted_tokens - wasted <= 0.05 * (loaded.counters.generated_tokens - drawn)
    assert loaded.counters.late_requests > 100
    assert loaded.num_refused > 50, "most are told at once"
    loaded.bench.assert_blocks_returned()


@pytest.mark.parametrize(("num_tokens", "is_refused"), [(60, False), (200, True)])
def test_what_cannot_end_in_time_and_is_not_streamed_is_refused(paced: Loaded, num_tokens: int, is_refused: bool) -> None:
    """All 200 tokens are sure to be drawn, and nobody hears of any before the last. Its caller is not told to try again."""
    now, params = paced.clock.now, SamplingParams(max_new_tokens=num_tokens, ignore_eos=True)
    times: dict[str, Any] = {"num_least_tokens": 1, "due_at": now + DEADLINE_S, "submitted_at": now}
    paced.bench.engine.check_room(paced.bench.request(draws=Draws(1, params), **times))
    probe = paced.bench.request(draws=Draws(1, params, num_to_first=num_tokens), **times)
    with pytest.raises(ResourceExhausted, match="200 tokens take about") if is_refused else contextlib.nullcontext() as caught:
        paced.bench.engine.check_room(probe)
    assert caught is None or caught.value.retry_after_s is None


def test_nobody_is_refused_before_a_pace_is_known(loaded: Loaded) -> None:
    for _ in range(200):
        loaded.ask(deadline_s=0.001)
    assert loaded.counters.late_requests == 0


def test_counts_alone_tell_who_would_be_too_late(paced: Loaded) -> None:
    """The door asked with the first token alone, so that nine of ten of those refused had been tokenised and built before."""
    paced.fill()
    while not paced.num_refused:
        with contextlib.suppress(ResourceExhausted):
            paced.ask()
    assert paced.counters.late_requests == 1
    now, params = paced.clock.now, SamplingParams(max_new_tokens=REPLY, ignore_eos=True)
    probe = paced.bench.request(num_least_tokens=1, draws=Draws(1, params), due_at=now + DEADLINE_S, submitted_at=now)
    with pytest.raises(ResourceExhausted):
        paced.bench.engine.check_room(probe)


def test_a_first_token_that_would_come_too_late_is_refused_at_once(paced: Loaded) -> None:
    """Nothing is computed for it, its reader hears when to come back; on an idle server, too."""
    steps = paced.counters.steps
    with pytest.raises(ResourceExhausted) as caught:
        paced.ask(deadline_s=0.01)
    assert caught.value.retry_after_s is not None
    assert "hint:" in caught.value.message
    assert (paced.counters.late_requests, paced.counters.rejected_requests, paced.counters.steps) == (1, 1, steps)
    paced.bench.assert_blocks_returned()


def test_counts_are_enough_to_refuse(paced: Loaded) -> None:
    """Before a text is tokenised: the queue and the wait are known. Nothing is taken."""
    engine, now = paced.bench.engine, paced.clock.now
    engine.check_room(paced.bench.request(num_least_tokens=900_000))
    with pytest.raises(ResourceExhausted):
        engine.check_room(paced.bench.request(num_least_tokens=1_000_001))
    with pytest.raises(ResourceExhausted):
        engine.check_room(paced.bench.request(num_least_tokens=1, due_at=now + 0.01, submitted_at=now))
    assert (paced.counters.rejected_requests, paced.counters.late_requests, engine.is_idle) == (2, 1, True)


def test_a_group_that_waits_for_its_prompt_keeps_nobody_out(paced: Loaded) -> None:
    """Its samples start with the next step. Each counted as one that must end first: a call with twenty seconds left was refused."""
    paced.ask(num_tokens=8, deadline_s=60.0, n=64)
    paced.step()
    assert len(paced.bench.engine.scheduler.waiting) >= 60, "all but one are passed by until the prompt is there"
    paced.ask(deadline_s=20.0)
    assert paced.counters.late_requests == 0
    paced.run()
    paced.bench.assert_blocks_returned()


def test_texts_that_are_only_scored_are_no_rows(paced: Loaded) -> None:
    """Each counted as a row that draws: a call that had time enough waited until all of them had been scored."""
    bench, now = paced.bench, paced.clock.now
    times: dict[str, Any] = {"due_at": now + DEADLINE_S, "submitted_at": now}
    texts = [bench.given([5], [6], score=("reference",), **times).samples[0] for _ in range(100)]
    for text in texts:
        text.phase = Phase.SCORING
    params = SamplingParams(max_new_tokens=REPLY, ignore_eos=True)
    asked, drawing = (bench.sampled([5], params=params, **times).samples[0] for _ in range(2))
    drawing.phase = Phase.GENERATING
    bench.engine.scheduler.pace._parts = (BASE_S, ROW_S, TOKEN_S)
    assert bench.engine.scheduler.deadlines.verdict(asked, [*texts, drawing], 1, now) is Verdict.START


def test_max_new_tokens_is_a_bound_and_no_reason_to_refuse(paced: Loaded) -> None:
    """A reply may end early, and a reader of a stream takes what comes until his deadline."""
    ends_early = paced.ask(num_tokens=200, deadline_s=1.0, ignore_eos=False)
    never_ends = paced.ask(num_tokens=200, deadline_s=1.0)
    paced.run()
    assert paced.counters.late_requests == 0
    assert all(len(request.samples[0].completion) > 20 for request in (ends_early, never_ends))


def test_what_expired_in_the_queue_costs_no_forward_pass(paced: Loaded) -> None:
    paced.bench.engine.scheduler.pace = paced.bench.engine.scheduler.deadlines.pace = Pace()  # or it would be refused
    waiting = paced.ask(deadline_s=0.5)
    paced.clock.now += 1.0
    steps, tokens = paced.counters.steps, paced.counters.trunk_tokens
    paced.run()
    assert waiting.is_ended
    assert (paced.counters.steps, paced.counters.trunk_tokens, paced.counters.expired_requests) == (steps, tokens, 1)


def test_tokens_of_a_reply_that_was_broken_off_are_counted(paced: Loaded) -> None:
    request = paced.ask(num_tokens=200, deadline_s=1.0)
    paced.run()
    assert request.samples[0].finish_reason is FinishReason.ABORTED
    assert paced.counters.wasted_tokens == len(request.samples[0].completion) > 0


def test_who_is_refused_in_the_queue_gets_the_error_and_no_sample(paced: Loaded) -> None:
    """A client tries again by itself only if nothing has come yet."""
    paced.fill()
    [waiting, *_] = [sample.request for sample in paced.bench.engine.scheduler.waiting]
    heard: list[Event] = []
    waiting.deliver = lambda _, events: heard.extend(events)
    late, paced.clock.now = paced.counters.late_requests, paced.clock.now + 0.5
    paced.step()
    [ended] = heard
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, ResourceExhausted)
    assert ended.error.retry_after_s is not None
    assert paced.counters.late_requests > late
    paced.run()
    paced.bench.assert_blocks_returned()


def test_work_in_progress_comes_first(paced: Loaded) -> None:
    """One more row would make those that run late: newcomers wait until some have ended, with a deadline and without."""
    paced.fill()
    running = [sample.request for sample in paced.bench.engine.scheduler.running]
    assert 8 <= len(running) <= 16
    patient = paced.ask(deadline_s=math.inf)
    paced.step()
    assert patient.lease is None
    paced.run()
    assert all(is_whole(request) for request in [*running, patient])
    assert paced.counters.wasted_tokens == 0


def test_without_a_deadline_nothing_is_refused_and_nothing_waits(paced: Loaded) -> None:
    requests = [paced.ask(deadline_s=math.inf) for _ in range(60)]
    for _ in range(4):  # some wait for a block that another one computes
        paced.step()
    assert len(paced.bench.engine.scheduler.running) == 60
    paced.run()
    assert paced.counters.late_requests == 0
    assert all(is_whole(request) for request in requests)


def test_a_deadline_beside_patient_work_is_served(paced: Loaded) -> None:
    """A hundred rollouts without a deadline make steps so long that a reply cannot be whole in time: its reader gets what can be had."""
    for _ in range(100):
        paced.ask(num_tokens=200, deadline_s=math.inf)
    for _ in range(3):
        paced.step()
    hurried = paced.ask()
    for _ in range(4):
        paced.step()
    assert hurried.lease is not None
    assert hurried.samples[0].completion


def test_a_request_of_many_samples_is_planned_as_a_whole(paced: Loaded) -> None:
    """64 rows at once could not be in time; 8 can."""
    small = paced.ask(n=8)
    paced.run()
    assert is_whole(small)
    assert paced.counters.wasted_tokens == 0


class TestPace:
    """What is learned of steps and replies."""

    def test_the_parts_of_a_step_are_told_apart(self, loaded: Loaded) -> None:
        loaded.offer(CALLS_A_SECOND, seconds=5.0)
        pace = loaded.bench.engine.scheduler.pace
        assert pace.step_s(1) == pytest.approx(BASE_S + ROW_S, rel=0.25)
        assert pace.step_s(16) == pytest.approx(BASE_S + 16 * ROW_S, rel=0.25)

    def test_one_stall_is_no_pace_and_an_old_pace_is_none(self, paced: Loaded) -> None:
        pace = paced.bench.engine.scheduler.pace
        before = pace.step_s(1)
        pace.note_step(Batch(), 30.0, paced.clock.now)
        assert pace.step_s(1) < 2 * before
        assert pace.is_known(paced.clock.now)
        assert not pace.is_known(paced.clock.now + 11.0)

    def test_replies_are_as_long_as_those_before_them(self, paced: Loaded) -> None:
        """Half of max_new_tokens on average; those that never end before it take all of it."""
        pace = paced.bench.engine.scheduler.pace
        for number in range(200):
            sample = paced.bench.sampled([5], params=SamplingParams(max_new_tokens=100)).samples[0]
            sample.completion, sample.finish_reason = [7] * (1 + number * 37 % 100), FinishReason.EOS
            pace.note_reply(sample, paced.clock.now)
        fresh, exact = (
            paced.bench.sampled([5], params=SamplingParams(max_new_tokens=100, ignore_eos=ignore_eos)).samples[0]
            for ignore_eos in (False, True)
        )
        assert pace.reply_tokens(fresh) == pytest.approx(50, abs=10)
        assert pace.reply_tokens(fresh, is_long=True) == pytest.approx(90, abs=12)
        assert pace.reply_tokens(exact) == 100
