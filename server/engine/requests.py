"""The open requests: how one is admitted, what is counted over all of them, and every way in which one ends.

Knows no tensor. Callers' threads use `admit`, `check_room` and the counts; everything below the line belongs to the engine's thread.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator

from polyhead.heads.format.errors import Aborted, PolyheadError, ResourceExhausted, Unavailable
from polyhead.server.engine.outbox import Outbox
from polyhead.server.engine.schedule.admission import check_queue
from polyhead.server.engine.schedule.scheduler import Scheduler
from polyhead.server.engine.work.events import Accepted, Ended
from polyhead.server.engine.work.reports import Counters, QueueLimits
from polyhead.server.engine.work.request import Phase, Request, Sample
from polyhead.server.engine.work.sampling import FinishReason

logger = logging.getLogger(__name__)

EXIT_ENGINE_FAILED = 71  # the engine hangs (process/watchdog.py), its GPU has failed, or it cannot give back a request's blocks


class OpenRequests:
    """Those that were submitted and have not ended."""

    def __init__(
        self, scheduler: Scheduler, outbox: Outbox, counters: Counters, limits: QueueLimits, clock: Callable[[], float]
    ) -> None:
        self.scheduler = scheduler
        self.outbox = outbox
        self.counters = counters
        self.limits = limits
        self.clock = clock
        self.end_process: Callable[[str], None] = end_process
        self.is_draining = False  # take no more
        self.lock = threading.Condition()  # the engine's thread waits on it
        self._open: dict[int, Request] = {}  # by serial; guarded by the lock

    def __len__(self) -> int:
        return len(self._open)

    def list(self) -> list[Request]:
        """All of them."""
        with self.lock:
            return list(self._open.values())

    # ---- from any thread

    def admit(self, request: Request) -> None:
        """Count a request as open. Call with the lock held. Raises ResourceExhausted or Unavailable as `Engine.submit` says."""
        self._check_admission(request)
        self._open[request.serial] = request
        request.num_admitted_tokens = request.num_tokens
        request.num_waiting = len(request.samples)
        self.counters.requests += 1

    def check_room(self, request: Request) -> None:
        """Raise what `admit` would. Counts nothing as open."""
        with self.lock:
            self._check_admission(request)

    def _check_admission(self, request: Request) -> None:
        if self.is_draining:
            raise Unavailable("the server is shutting down: try another one", retry_after_s=1.0)
        try:
            self._check_queue_and_deadline(request)
        except ResourceExhausted:
            self.counters.rejected_requests += 1
            raise

    def _check_queue_and_deadline(self, request: Request) -> None:
        check_queue(request, self._open.values(), self.limits)
        try:
            self.scheduler.deadlines.check(request, self._open.values(), self.scheduler.num_rows, self.clock())
        except ResourceExhausted:
            self.counters.late_requests += 1
            raise

    def leased_digests(self) -> dict[str, int]:
        """Digest to the number of open requests on it: what they hold, and the versions that those without a lease will."""
        held = [request.held | {head.live for head in request.pinned.values()} for request in self.list()]
        return dict(collections.Counter(digest for heads in held for digest in {live.digest for live in heads}))

    def leased_names(self) -> dict[str, int]:
        """Head name to the number of running requests on any version of it."""
        leases = [request.lease for request in self.list() if request.lease is not None]
        return dict(collections.Counter(name for lease in leases for name in {head.name for head in lease.heads.values()}))

    # ---- the engine's thread

    def announce_leases(self) -> None:
        for request in self.scheduler.newly_leased:
            assert request.lease is not None
            request.queue_s = self.clock() - request.submitted_at
            self.outbox.add(request, Accepted(request.lease, request.queue_s))
        self.scheduler.newly_leased.clear()

    def expire(self, now: float) -> None:
        """End the requests whose deadline has passed."""
        with self.lock:
            late = [request for request in self._open.values() if now > request.deadline_at]
        for request in late:
            self.abort(request, Aborted("the request's deadline has passed"))

    def abort(self, request: Request, reason: PolyheadError) -> None:
        """End a request now: its unfinished samples are returned as they are, and everything they hold is given back."""
        if request.is_ended:
            return
        self.counters.aborted_requests += 1
        now = self.clock()
        if request.lease is None and now >= request.deadline_at:
            self.counters.expired_requests += 1
        for sample in request.samples:
            if sample.phase is not Phase.DONE:
                sample.finish_reason, sample.is_terminated = FinishReason.ABORTED, False
                self._count_waste(sample, now)
                sample.error = reason.message
                self.remove(sample)
        self.end(request, reason)

    def end_refused(self) -> None:
        """End what the scheduler has refused in this step."""
        refused, self.scheduler.refused = self.scheduler.refused, []
        for request, error in refused:
            self._refuse(request, error)

    def _refuse(self, request: Request, error: PolyheadError) -> None:
        """End a request that has not begun: its reader gets the error and nothing else, so that a client may try again."""
        if request.is_ended:  # refused for an earlier sample
            return
        if isinstance(error, ResourceExhausted):
            self.counters.late_requests += 1
        else:
            self.counters.aborted_requests += 1
        for sample in request.samples:
            sample.finish_reason, sample.error = FinishReason.ABORTED, error.message
            self.scheduler.remove(sample)
        self.end(request, error)

    def remove(self, sample: Sample) -> None:
        """Give back what a sample holds, and say that it is finished."""
        with self.giving_back():
            self.scheduler.remove(sample)
        self.outbox.add_finished(sample)

    def end(self, request: Request, error: PolyheadError | None) -> None:
        """A request's last event. Its samples are finished already."""
        with self.giving_back():
            request.is_ended = True
            request.hold(frozenset())
            with self.lock:
                self._open.pop(request.serial, None)
        self.outbox.add(request, Ended(error))

    @contextlib.contextmanager
    def giving_back(self) -> Iterator[None]:
        """Blocks and places are given back in here. Should that fail, the process ends: block counts would be wrong from then on, and
        a call could stay open for ever."""
        try:
            yield
        except BaseException:
            logger.critical("what a request held could not be given back", exc_info=True)
            self.end_process("the engine cannot give back what a request held")
            raise

    def _count_waste(self, sample: Sample, now: float) -> None:
        """Count the tokens of a sample that is broken off, and note how long it has become at least."""
        if not sample.is_given:
            self.counters.wasted_tokens += len(sample.completion)
            self.scheduler.pace.note_reply(sample, now)


def end_process(problem: str) -> None:
    """At once: what other threads do cannot be relied on. The store is safe at any moment."""
    logger.critical("%s; the process ends with status %d", problem, EXIT_ENGINE_FAILED)
    logging.shutdown()
    os._exit(EXIT_ENGINE_FAILED)
