"""Admission by deadlines: which requests are refused at submission, which samples may start, which have waited too long.

A request is refused at submission only if its wait, its prefill and its first token would pass its deadline: `max_new_tokens` is a bound,
and replies end before it. One whose tokens are all sure to be drawn and are not streamed is also refused if they would take too long
whatever else runs. In the queue, running work comes first: a sample does not start if its row would slow running samples past their
deadlines, or if it would run too slowly to meet its own. A request that could have met its deadline when it came, and has waited until it
cannot any more, is refused then. Only deadlines that callers gave count (`due_at`). Knows no blocks and no tokens.
"""

from __future__ import annotations

import collections
import enum
import math
from collections.abc import Collection, Sequence

from polyhead.heads.format.errors import ResourceExhausted
from polyhead.server.engine.schedule.pace import Pace
from polyhead.server.engine.work.request import Phase, Request, Sample

MARGIN = 1.1  # steps may come to take so many times what they take now
RUNNING_SHARE = 0.9  # of a request's whole time: what is kept for running when many wait, since more rows draw more tokens a second
HOPELESS = 0.75  # a sample that needs steps shorter than this times the present ones misses its deadline anyway, and holds up no other
FIRST_ROWS = 8  # with a deadline that run before a pace is known
CROWD = 2.0  # samples that cannot meet their deadlines may make steps at most this many times as long as one of them alone does
LEAST_RETRY_S, MOST_RETRY_S = 0.05, 5.0


class Verdict(enum.Enum):
    """The decision on a waiting sample in this step."""

    START = "start"
    WAIT = "wait"
    REFUSE = "refuse"


class Deadlines:
    """Plans with the pace. The engine's thread asks `verdict`, callers' threads `check`."""

    def __init__(self, pace: Pace, max_rows: int) -> None:
        self.pace = pace
        self.max_rows = max_rows  # that run at once
        self.most_rows = 0  # rows that ran when a sample was last told to wait; 0: none waits

    # ---- at submission

    def check(self, request: Request, open_requests: Collection[Request], num_running: int, now: float) -> None:
        """Raises ResourceExhausted, with RetryInfo, if the request's first token would come too late."""
        if math.isinf(request.due_at) or not self.pace.is_known(now):
            return
        num_ahead, num_prefill = _ahead(request, open_requests)
        num_patient = sum(_num_begun(each) for each in open_requests if math.isinf(each.due_at))
        self._check_attainable(request, num_patient, now)
        wait_s = self._queue_s(num_ahead, num_running) + self.pace.prefill_s(num_prefill)
        late_s = now + wait_s - self._latest_start(request, num_running + num_ahead, num_patient)
        if late_s > 0.0:
            raise too_late(f"about {wait_s:.2g} s of work come first", late_s)

    def _check_attainable(self, request: Request, num_patient: int, now: float) -> None:
        """Refuse what is sure to end too late beside nothing but the rows that have no deadline, and of which nobody reads a part."""
        num_tokens = request.draws.num_to_first if request.draws else 0
        time_s = request.due_at - now
        beside_s, alone_s = (HOPELESS * num_tokens * self.pace.step_s(count) for count in (num_patient + 1, 1))
        if beside_s > time_s:
            is_for_good = alone_s > time_s
            raise too_late(f"{num_tokens} tokens take about {beside_s / HOPELESS:.2g} s", None if is_for_good else beside_s - time_s)

    def _queue_s(self, num_ahead: int, num_running: int) -> float:
        """Seconds until one more row may run: as many rows must end as are ahead of it beyond those that fit."""
        num_too_many = num_running + num_ahead + 1 - self.most_rows if self.most_rows else 0
        return max(0, num_too_many) * self.pace.stay_s / max(1, num_running)

    # ---- in the queue

    def verdict(self, sample: Sample, running: Sequence[Sample], num_to_draw: int, now: float) -> Verdict:
        """Whether a sample joins those that run, waits, or has waited too long. A request that has begun is never refused."""
        request, num_running = sample.request, count_rows(running)
        hurried = [each for each in running if _is_row(each) and not math.isinf(each.request.due_at)]
        if not self.pace.is_known(now):
            is_crowd = len(hurried) >= FIRST_ROWS and not math.isinf(request.due_at)
            return Verdict.WAIT if is_crowd else Verdict.START
        num_patient = num_running - len(hurried)
        if request.lease is None and not math.isinf(request.due_at):
            num_others = num_running + num_to_draw - (0 if sample.is_given else len(request.samples))
            if now > self._latest_start(request, num_others, num_patient):
                return Verdict.REFUSE
            if hurried and self._is_slow(request, num_running, num_patient, now):
                return Verdict.WAIT
        num_more = 0 if sample.is_given else 1
        is_harming = self._is_harming(hurried, num_running, num_more, now + self.pace.prefill_s(request.num_prefill_tokens))
        return Verdict.WAIT if is_harming else Verdict.START

    def _is_slow(self, request: Request, num_running: int, num_patient: int, now: float) -> bool:
        """Whether a request would run too slowly beside the running rows: late, or among too many that are late anyway."""
        if self._is_attainable(request, num_patient, is_long=True):
            return now + MARGIN * self._run_s(request, num_running, is_long=True) > request.due_at
        num_own = len(request.samples)
        return self.pace.step_s(num_running + num_own) > CROWD * self.pace.step_s(num_patient + num_own)

    def _is_harming(self, hurried: Sequence[Sample], num_running: int, num_more: int, now: float) -> bool:
        """Whether so many more rows would make a running sample late that would be in time at the present pace."""
        present_s, step_s = HOPELESS * self._step_s(num_running), MARGIN * self._step_s(num_running + num_more)
        for sample in hurried:
            num_left = self.pace.reply_tokens(sample, is_long=True)
            if sample.phase is Phase.GENERATING and num_left * present_s <= sample.request.due_at - now < num_left * step_s:
                return True
        return False

    # ---- times

    def _latest_start(self, request: Request, num_others: int, num_patient: int) -> float:
        """When a request must begin: to have its first token in time, or all of them if that was possible when it came."""
        first_token_at = request.due_at - self.pace.prefill_s(request.num_prefill_tokens) - self.pace.step_s(1)
        if request.to_draw is None or not self._is_attainable(request, num_patient):
            return first_token_at
        alone_s, beside_s = (MARGIN * self._run_s(request, count) for count in (num_patient, num_others))
        whole_s = RUNNING_SHARE * (request.due_at - request.submitted_at)
        return min(first_token_at, request.due_at - max(min(whole_s, beside_s), alone_s / MARGIN))

    def _is_attainable(self, request: Request, num_patient: int, is_long: bool = False) -> bool:
        """Whether it could be in time beside nothing but the rows that have no deadline."""
        alone_s = self._run_s(request, num_patient, is_long) + self.pace.prefill_s(request.num_prefill_tokens)
        return alone_s <= request.due_at - request.submitted_at

    def _run_s(self, request: Request, num_others: int, is_long: bool = False) -> float:
        """Seconds for all samples of a request that has not begun, each as long as its first, beside so many rows of others."""
        if (draws := request.to_draw) is None:
            return 0.0
        num_samples = draws.num_samples
        num_rows = min(self.max_rows, max(0, num_others) + num_samples)
        num_rounds = -(-num_samples // self.max_rows)
        step_s = self._step_s(num_rows) if num_others else self.pace.step_s(num_rows)
        return num_rounds * self.pace.drawn_tokens(draws.params, is_long=is_long) * step_s

    def _step_s(self, num_rows: int) -> float:
        """With the prefill and the scoring that were lately done in between."""
        return self.pace.drag * self.pace.step_s(num_rows)


def count_rows(running: Collection[Sample]) -> int:
    """Samples that draw, or are about to: what is scored is done in between, and shows as drag."""
    return sum(map(_is_row, running))


def _is_row(sample: Sample) -> bool:
    return not sample.is_given and sample.phase is not Phase.SCORING


def _num_begun(request: Request) -> int:
    """Samples that have begun to draw; what is only scored draws no token."""
    return 0 if _is_given(request) else max(0, request.num_open - request.num_waiting)


def _is_given(request: Request) -> bool:
    return bool(request.samples) and request.samples[0].is_given


def _ahead(request: Request, open_requests: Collection[Request]) -> tuple[int, int]:
    """(samples that start before this request, their prefill tokens). Of another principal, as many samples count as of its own."""
    waiting: collections.Counter[str] = collections.Counter()
    num_first = num_prefill = num_all = 0
    for each in open_requests:
        count = 0 if _is_given(each) else each.num_waiting
        if each.priority < request.priority:
            num_first += count
        elif each.priority is request.priority:
            waiting[each.principal] += count
        if each.priority <= request.priority:
            num_prefill, num_all = num_prefill + each.num_prefill_tokens, num_all + count
    num_own = waiting.pop(request.principal, 0)
    num_ahead = num_first + num_own + sum(min(count, num_own + 1) for count in waiting.values())
    return num_ahead, num_prefill * num_ahead // max(1, num_all)


def too_late(reason: str, retry_after_s: float | None) -> ResourceExhausted:
    """The error of a request that cannot meet its deadline; without a time after which to try again, it would not meet it then either."""
    hint = "give it more time, or ask for fewer tokens" if retry_after_s is None else "give it more time, or send it again later"
    return ResourceExhausted(
        f"the deadline would pass before the request could be served: {reason}\nhint: {hint}",
        retry_after_s=None if retry_after_s is None else min(MOST_RETRY_S, max(LEAST_RETRY_S, retry_after_s)),
        metadata={"refused_for": "deadline"},
    )
