"""The engine: one thread that turns queued requests into tokens and scores, a step at a time.

`step` tells the story. Other threads talk to it only through the inbox, which is emptied between two steps, so an activation is one
pointer that flips there. It knows no tokenizer, no protobuf and no event loop: what a step has to say goes to `sink` in one call.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import torch
from torch import Tensor

from polyhead.heads.format.errors import Aborted, PolyheadError, ResourceExhausted, Unavailable
from polyhead.server.engine.blocks.tree import BlockTree
from polyhead.server.engine.layers.heads import CANARY_TOKENS, HeadRunner
from polyhead.server.engine.layers.sampler import Draw, DrawRow
from polyhead.server.engine.layers.trunk import TrunkRunner
from polyhead.server.engine.schedule.admission import check_queue
from polyhead.server.engine.schedule.scheduler import Scheduler
from polyhead.server.engine.schedule.scorer import take_rows
from polyhead.server.engine.work.batch import Batch, HeadRun
from polyhead.server.engine.work.events import Accepted, Drawn, Ended, Finished
from polyhead.server.engine.work.gaps import StepGaps
from polyhead.server.engine.work.live import ActiveSet, LiveHead, ServedHead
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.reports import Counters, EngineSnapshot, QueueLimits, SwapReport
from polyhead.server.engine.work.request import OnSwap, Output, Phase, Request, Sample
from polyhead.server.engine.work.sampling import FinishReason
from polyhead.server.engine.work.tokens import add_token, finish_reason, tail
from polyhead.server.host.commit import commit
from polyhead.server.host.threads import use_torch_threads

logger = logging.getLogger(__name__)

EXIT_ENGINE_FAILED = 71  # it hangs (server/process/watchdog.py), or cannot give back what a request held
StepEvents = dict[Request, list[Event]]  # what one step has to say to whom


class Engine:
    """One trunk, any number of heads, one thread."""

    def __init__(
        self,
        trunk: TrunkRunner,
        heads: HeadRunner,
        tree: BlockTree,
        scheduler: Scheduler,
        draw: Draw,
        queue: QueueLimits,
        num_threads: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trunk = trunk
        self.heads = heads
        self.tree = tree
        self.scheduler = scheduler
        self.draw = draw  # reads heads' logits
        self.queue = queue
        self.num_threads = num_threads  # of torch, within the engine's thread; 0: torch's own choice
        self.clock = clock
        self.counters = Counters()
        self.active = ActiveSet(generation=0)
        self.end_process: Callable[[str], None] = end_process
        self.sink: Callable[[StepEvents], None] = deliver_now  # set before start; never blocks
        self.last_step_at = clock()
        self.last_swap_pause_s = 0.0
        self.gaps = StepGaps()
        self._inbox: collections.deque[Callable[[], None]] = collections.deque()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._is_stopped = False  # nothing empties the inbox any more
        self._is_draining = False
        self._open: dict[int, Request] = {}  # by serial; guarded by _wake
        self._outbox: dict[Request, list[Event]] = {}
        self._thread = threading.Thread(target=self._run, name="polyhead-engine", daemon=True)

    # ---- from any thread

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread; every open request ends as aborted."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def drain(self) -> None:
        """Take no more requests; finish the open ones."""
        self._is_draining = True

    @property
    def is_idle(self) -> bool:
        """Whether no request is open."""
        return not self._open

    @property
    def state_bytes(self) -> int:
        """Of one token's state."""
        return self.trunk.cache.states[0].nbytes

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ResourceExhausted at once when the queue is full or too small for it, or its deadline too near;
        Unavailable when draining.
        """
        with self._wake:
            self._check_admission(request)
            self._open[request.serial] = request
            request.num_admitted_tokens = request.num_tokens
            request.num_waiting = len(request.samples)
            self.counters.requests += 1
            self._inbox.append(lambda: self._enter(request))
            self._wake.notify()

    def check_room(self, request: Request) -> None:
        """What `submit` would refuse by counts alone, for a request that has no samples yet (`num_least_tokens`). Takes nothing."""
        with self._wake:
            self._check_admission(request)

    def _check_admission(self, request: Request) -> None:
        if self._is_draining or self._is_stopping:
            raise Unavailable("the server is shutting down: try another one", retry_after_s=1.0)
        try:
            self._check_queue_and_deadline(request)
        except ResourceExhausted:
            self.counters.rejected_requests += 1
            raise

    def _check_queue_and_deadline(self, request: Request) -> None:
        check_queue(request, self._open.values(), self.queue)
        try:
            self.scheduler.deadlines.check(request, self._open.values(), len(self.scheduler.running), self.clock())
        except ResourceExhausted:
            self.counters.late_requests += 1
            raise

    def cancel(self, request: Request, reason: PolyheadError) -> None:
        """End a request before the next step: the one way out for cancels, deadlines and disconnects. Idempotent."""
        if not request.is_ended:
            with contextlib.suppress(Unavailable):  # a stopped engine has ended every request
                self._post(lambda: self._abort(request, reason))

    def activate(self, active: ActiveSet) -> Future[SwapReport]:
        """Make `active` what new requests use, between two steps."""
        future: Future[SwapReport] = Future()

        def flip() -> None:
            try:
                future.set_result(self._flip(active))
            except Exception as error:
                future.set_exception(error)

        self._post(flip)
        return future

    def commit_caches(self, goes_on: Callable[[], bool]) -> bool:
        """Take the memory that the caches were promised, beside steps (server/host/commit.py). Returns whether all is taken."""
        return commit([*self.trunk.cache.tensors, *self.heads.cache.layers], goes_on)

    def snapshot(self) -> EngineSnapshot:
        """Plain numbers, read without stopping the engine."""
        return EngineSnapshot(
            counters=self.counters.as_dict(),
            num_running=len({sample.request.serial for sample in list(self.scheduler.running)}),
            num_waiting=len({sample.request.serial for sample in list(self.scheduler.waiting)}),
            num_blocks=self.tree.num_slots,
            num_used_blocks=self.tree.num_used,
            num_cached_blocks=self.tree.num_cached,
            num_head_blocks=self.tree.heads.num_slots,
            num_filled_head_blocks=self.tree.heads.num_filled,
            last_swap_pause_s=self.last_swap_pause_s,
            last_step_at=self.last_step_at,
            num_open=len(self._open),
            is_running=self._thread.is_alive(),
            longest_gap_s=self.gaps.longest_s(self.clock()),
        )

    def leased_digests(self) -> dict[str, int]:
        """Digest to the number of open requests on it: what they hold, and the versions that those without a lease will."""
        with self._wake:
            held = [request.held | {head.live for head in request.pinned.values()} for request in self._open.values()]
        return dict(collections.Counter(digest for heads in held for digest in {live.digest for live in heads}))

    def leased_names(self) -> dict[str, int]:
        """Head name to the number of running requests on any version of it."""
        with self._wake:
            leases = [request.lease for request in self._open.values() if request.lease is not None]
        return dict(collections.Counter(name for lease in leases for name in {head.name for head in lease.heads.values()}))

    def drop_head(self, digest: str) -> None:
        """A head is no longer in memory: forget what it computed for cached text, and its recorded steps."""

        def forget() -> None:
            self.tree.forget_digest(digest)
            self.heads.forget(digest)

        self._post(forget)

    def warm_up(self, head: ServedHead) -> None:
        """Run a head once on random states, on the caller's thread beside the engine. Raises DataLoss if its output is not finite."""
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(CANARY_TOKENS, self.trunk.cache.states.shape[1], generator=generator)
        self.heads.try_out(head.live, states)

    # ---- the engine's thread

    def step(self) -> bool:
        """Advance everything once. Returns whether there was anything to do."""
        started_at = self.clock()
        self._expire(started_at)
        batch = self.scheduler.schedule(self.active, started_at)
        self._announce_leases()
        self._end_refused()
        self._end_unreadable()
        if not batch.is_empty:
            self._forward(batch)
            self.counters.steps += 1
        num_finished = self._finish_scored()
        self._flush()
        self.last_step_at = self.clock()
        if not batch.is_empty:
            self.scheduler.pace.note_step(batch, self.last_step_at - started_at, self.last_step_at)
        self.gaps.note(self.last_step_at, has_worked=not batch.is_empty)
        return not batch.is_empty or num_finished > 0

    def _forward(self, batch: Batch) -> None:
        started_at = self.clock()
        if batch.trunk_runs:
            self.trunk.forward(batch.trunk_runs)
            self.scheduler.commit_trunk(batch)
        trunk_done_at = self.clock()
        for head, runs in batch.by_head():
            self._forward_head(head, [run for run in runs if run.reading.head_blocks])
        ended_at = self.clock()
        self.scheduler.fit_chunk(batch, ended_at - started_at)
        self.counters.trunk_tokens += batch.num_trunk_tokens
        self.counters.trunk_seconds_us += int((trunk_done_at - started_at) * 1e6)
        self.counters.head_seconds_us += int((ended_at - trunk_done_at) * 1e6)

    def _forward_head(self, head: LiveHead, runs: list[HeadRun]) -> None:
        """Runs whose sample ended in this step, on another head, are left out before this: they have given their blocks back."""
        if not runs:
            return
        rows = self.heads.forward(head, runs)
        self.scheduler.commit_heads(runs)
        self.counters.head_forwards += 1
        self.counters.head_tokens += sum(run.end - run.start for run in runs)
        self.counters.rebuilt_tokens += sum(run.end - run.start for run in runs if run.reading is run.reading.sample.successor)
        self._take(runs, rows)

    def _take(self, runs: list[HeadRun], rows: Tensor) -> None:
        """Hand a head's rows to the sampler or to the scorer."""
        offset = 0
        to_draw: list[tuple[Sample, int]] = []
        for run in runs:
            reading = run.reading
            if run.num_rows and reading.output is Output.NEXT_TOKEN:
                to_draw.append((reading.sample, offset))
            elif run.num_rows:
                take_rows(reading, rows[offset : offset + run.num_rows], run.first_row, self.draw)
            offset += run.num_rows
            if reading.output is not Output.NEXT_TOKEN and (reading.is_done or reading.error):
                with self._giving_back():
                    self.scheduler.finish_reading(reading)
                self.counters.scored_readings += 1
        if to_draw:
            drawn_from = rows if len(to_draw) == len(rows) else rows[[row for _, row in to_draw]]
            self._draw([sample for sample, _ in to_draw], drawn_from)

    def _draw(self, samples: list[Sample], logits: Tensor) -> None:
        rows = [DrawRow(sample.params, sample.seed, len(sample.completion), sample.sequence.tokens) for sample in samples]
        drawn = self.draw(logits, rows)
        lists = (each.tolist() for each in (drawn.token_ids, drawn.logprobs, drawn.sampling_logprobs))
        for sample, is_finite, token_id, logprob, sampling_logprob in zip(samples, drawn.is_finite, *lists, strict=True):
            if is_finite:
                self._append(sample, token_id, logprob, sampling_logprob)
            else:
                self._fail(sample, f"{sample.head.reference if sample.head else ''} gave logits that are not finite")

    def _append(self, sample: Sample, token_id: int, logprob: float, sampling_logprob: float) -> None:
        """One more token: record it, look for an end, ask for the next."""
        text = add_token(sample, token_id, logprob, sampling_logprob, self.clock())
        self.counters.generated_tokens += 1
        if sample.request.stream_tokens:
            self._emit(sample.request, Drawn(sample, len(sample.completion) - 1, token_id, logprob, sampling_logprob, text))
        reason = finish_reason(sample, token_id, self.scheduler.eos_ids)
        if sample.error:
            self._fail(sample, sample.error)
        elif reason is None:
            assert sample.reading is not None
            sample.reading.first, sample.reading.end = sample.reading.end, sample.reading.end + 1
            sample.sequence.num_wanted += 1
        else:
            self._finish_generating(sample, reason)

    def _finish_generating(self, sample: Sample, reason: FinishReason) -> None:
        assert sample.reading is not None
        sample.finish_reason = reason
        sample.is_terminated = reason.is_terminated
        sample.stop = sample.text.matched_stop if sample.text and reason is FinishReason.STOP_STRING else ""
        with self._giving_back():
            self.tree.heads.release(sample.reading)
        self.scheduler.pace.note_reply(sample, self.clock())
        self.scheduler.begin_scoring(sample)

    def _finish_scored(self) -> int:
        """Samples with nothing left to compute are complete; how many there were."""
        scoring = [sample for sample in self.scheduler.running if sample.phase is Phase.SCORING and not sample.todo]
        ready = [sample for sample in scoring if sample.sequence.num_outstanding <= 0]
        for sample in ready:
            self._finish(sample)
        return len(ready)

    def _finish(self, sample: Sample) -> None:
        request = sample.request
        if sample.finish_reason is not FinishReason.FAILED:
            self._keep_states(sample)
        self.counters.prompt_tokens += len(sample.prompt)
        self.counters.cache_hit_tokens += sample.num_cached_tokens
        self._remove(sample)
        request.num_open -= 1
        if request.num_open == 0:
            self._end(request, None)

    def _keep_states(self, sample: Sample) -> None:
        """Take out what the caller wants of the trunk's output, before the blocks go."""
        request, slots = sample.request, self.tree.slots(sample.sequence)
        if request.return_states:
            sample.states = self.trunk.states(slots, 0, sample.num_tokens, request.states_layer).cpu()
        if request.pooling is not None:
            sample.pooled = self.trunk.pooled(slots, len(sample.prompt), request.pooling)

    def _fail(self, sample: Sample, message: str) -> None:
        sample.finish_reason = FinishReason.FAILED
        sample.error = message
        self.counters.failed_samples += 1
        self._finish(sample)

    # ---- requests

    def _enter(self, request: Request) -> None:
        if request.is_ended:
            return
        request.num_open = len(request.samples)
        request.num_state_bytes = self.state_bytes if request.return_states else 0
        self.scheduler.add(request)

    def _abort(self, request: Request, reason: PolyheadError) -> None:
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
                self._remove(sample)
        self._end(request, reason)

    def _remove(self, sample: Sample) -> None:
        """Give back what a sample holds, and say that it is finished."""
        with self._giving_back():
            self.scheduler.remove(sample)
        self._emit_finished(sample)

    def _end(self, request: Request, error: PolyheadError | None) -> None:
        with self._giving_back():
            request.is_ended = True
            request.hold(frozenset())
            with self._wake:
                self._open.pop(request.serial, None)
        self._emit(request, Ended(error))

    @contextlib.contextmanager
    def _giving_back(self) -> Iterator[None]:
        """Giving back completes, or the process ends: afterwards nobody would know who holds which blocks, and a call could stay open."""
        try:
            yield
        except BaseException:
            logger.critical("what a request held could not be given back", exc_info=True)
            self.end_process("the engine cannot give back what a request held")
            raise

    def _count_waste(self, sample: Sample, now: float) -> None:
        """What was drawn for a sample that is broken off; how long it is at least."""
        if not sample.is_given:
            self.counters.wasted_tokens += len(sample.completion)
            self.scheduler.pace.note_reply(sample, now)

    def _expire(self, now: float) -> None:
        with self._wake:
            late = [request for request in self._open.values() if now > request.deadline_at]
        for request in late:
            self._abort(request, Aborted("the request's deadline has passed"))

    def _announce_leases(self) -> None:
        for request in self.scheduler.newly_leased:
            assert request.lease is not None
            self._emit(request, Accepted(request.lease, self.clock() - request.submitted_at))
        self.scheduler.newly_leased.clear()

    def _end_refused(self) -> None:
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
        self._end(request, error)

    def _end_unreadable(self) -> None:
        """The door refuses what they hold. Should it ever come through, it ends its own sample."""
        unreadable, self.scheduler.unreadable = self.scheduler.unreadable, []
        for sample in (each for each in unreadable if each.phase is not Phase.DONE):
            self._fail(sample, f"token id outside the vocabulary of {self.scheduler.vocab_size}: {sample.highest_id}")

    def _flip(self, active: ActiveSet) -> SwapReport:
        """The swap: one pointer. No block is touched; running requests hold what they leased, and followers turn to the new set."""
        started_at = time.monotonic()
        self.active = active
        with self._wake:
            leased = [request for request in self._open.values() if request.lease is not None]
        to_abort = [request for request in leased if request.on_swap is OnSwap.ABORT]
        for request in to_abort:
            self._abort(request, Aborted(f"generation {active.generation} was activated"))
        num_following = sum(self.scheduler.follower.turn(request, active) for request in leased if request.on_swap is OnSwap.FOLLOW)
        self.counters.swaps += 1
        self.last_swap_pause_s = time.monotonic() - started_at
        return SwapReport(self.last_swap_pause_s, len(leased) - len(to_abort) - num_following, len(to_abort), num_following)

    # ---- the loop

    def _run(self) -> None:
        if self.num_threads:
            use_torch_threads(self.num_threads)
        while not self._is_stopping:
            self._empty_inbox()
            if not self._step_safely():
                self._wait()
        self._end_all(Unavailable("the server is shutting down", retry_after_s=1.0))

    def _step_safely(self) -> bool:
        """A step; if it raises, the requests in the pools end and the engine goes on."""
        try:
            return self.step()
        except Exception:
            logger.exception("an engine step failed")
            failed = {sample.request for sample in self.scheduler.running} | self.scheduler.forget_step()
            if not failed:  # it failed before anything ran: one that waits may fail every step
                with self._wake:
                    failed = set(self._open.values())
            for request in failed:
                self._abort(request, PolyheadError("the engine failed on this batch: see the server's log"))
            self._flush()
            return bool(failed)

    def _wait(self) -> None:
        with self._wake:
            if not self._inbox and not self._is_stopping:
                self._wake.wait(timeout=0.05 if self._open else 1.0)

    def _empty_inbox(self) -> None:
        while self._inbox:
            try:
                self._inbox.popleft()()
            except Exception:
                logger.exception("an action between two steps failed")
        self._flush()

    def _post(self, action: Callable[[], None]) -> None:
        with self._wake:
            if self._is_stopped:
                raise Unavailable("the engine has stopped", retry_after_s=1.0)
            self._inbox.append(action)
            self._wake.notify()

    def _end_all(self, reason: PolyheadError) -> None:
        with self._wake:
            self._is_stopped = True
        self._empty_inbox()
        with self._wake:
            left = list(self._open.values())
        for request in left:
            self._abort(request, reason)
        self._flush()

    def _emit_finished(self, sample: Sample) -> None:
        sample.num_held = sample.num_bytes
        sample.request.reader.hold(sample.num_held)
        try:
            text = tail(sample)
        except Exception:  # the tokenizer's affair: its ids are whole
            logger.exception("the end of a sample's text could not be made")
            text = ""
        self._emit(sample.request, Finished(sample, text))

    def _emit(self, request: Request, event: Event) -> None:
        self._outbox.setdefault(request, []).append(event)

    def _flush(self) -> None:
        """Hand over a step's events in one call."""
        if self._outbox:
            outbox, self._outbox = self._outbox, {}
            with contextlib.suppress(RuntimeError):  # the readers' event loop is gone
                self.sink(outbox)


def end_process(problem: str) -> None:
    """At once: what other threads do cannot be relied on. The store is safe at any moment."""
    logger.critical("%s; the process ends with status %d", problem, EXIT_ENGINE_FAILED)
    logging.shutdown()
    os._exit(EXIT_ENGINE_FAILED)


def deliver_now(outbox: StepEvents) -> None:
    """Deliver on the engine's own thread: for use without an event loop."""
    for request, events in outbox.items():
        request.deliver(request, events)
