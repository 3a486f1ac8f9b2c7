"""The engine: one thread that turns queued requests into tokens and scores, a step at a time.

`step` tells the story. Other threads reach it only through the inbox, which is emptied between two steps, so an activation is one
pointer that changes there. It knows no tokenizer, no protobuf and no event loop.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import torch

from polyhead.heads.format.errors import Aborted, PolyheadError, Unavailable
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.ahead import LaunchDraws
from polyhead.server.engine.blocks.tree import BlockTree
from polyhead.server.engine.layers.cuda.graphs import sizes_for
from polyhead.server.engine.layers.cuda.threads import device_error, use_device
from polyhead.server.engine.layers.cuda.timing import DeviceTimes
from polyhead.server.engine.layers.heads import CANARY_TOKENS, HeadRunner
from polyhead.server.engine.layers.sampler import Draw
from polyhead.server.engine.layers.trunk import TrunkRunner
from polyhead.server.engine.outbox import Outbox
from polyhead.server.engine.requests import OpenRequests
from polyhead.server.engine.schedule.scheduler import Scheduler
from polyhead.server.engine.step import Stepper
from polyhead.server.engine.work.gaps import StepGaps
from polyhead.server.engine.work.live import ActiveSet, ServedHead
from polyhead.server.engine.work.reports import Counters, EngineSnapshot, QueueLimits, SwapReport
from polyhead.server.engine.work.request import OnSwap, Request
from polyhead.server.host.commit import commit
from polyhead.server.host.threads import use_torch_threads

logger = logging.getLogger(__name__)
R = TypeVar("R")


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
        launch: LaunchDraws | None = None,
    ) -> None:
        """`launch`: as `draw`, where draws need not be waited for."""
        self.trunk = trunk
        self.heads = heads
        self.tree = tree
        self.scheduler = scheduler
        self.num_threads = num_threads  # of torch, within the engine's thread; 0: torch's own choice
        self.counters = Counters()
        self.active = ActiveSet(generation=0)
        self.outbox = Outbox()
        self.requests = OpenRequests(scheduler, self.outbox, self.counters, queue, clock)
        times = DeviceTimes(self.counters) if trunk.device.type == "cuda" else None
        self.stepper = Stepper(trunk, heads, draw, self.requests, launch, times)
        self.last_step_at = clock()
        self.last_swap_pause_s = 0.0
        self.gaps = StepGaps()
        self._recorded_sizes = sizes_for(scheduler.limits.max_running) if trunk.graphs else ()
        self._inbox: collections.deque[Callable[[], None]] = collections.deque()
        self._wake = self.requests.lock
        self._is_stopping = False
        self._is_stopped = False  # nothing empties the inbox any more
        self._thread = threading.Thread(target=self._run, name="polyhead-engine", daemon=True)

    # ---- from any thread

    def start(self) -> None:
        """Begin to work. On a GPU the trunk's decode steps are recorded before."""
        use_device(self.trunk.device)
        for size in self._recorded_sizes:
            self.trunk.record(size)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread; every open request ends as aborted."""
        with self._wake:
            self._is_stopping = self.requests.is_draining = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def drain(self) -> None:
        """Take no more requests; finish the open ones."""
        self.requests.is_draining = True

    @property
    def is_idle(self) -> bool:
        """Whether no request is open."""
        return not len(self.requests)

    @property
    def state_bytes(self) -> int:
        """Of one token's state."""
        return self.trunk.cache.states[0].nbytes

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ResourceExhausted at once when the queue is full or too small for it, or its deadline too near;
        Unavailable when draining.
        """
        with self._wake:
            self.requests.admit(request)
            self._inbox.append(lambda: self._enter(request))
            self._wake.notify()

    def check_room(self, request: Request) -> None:
        """What `submit` would refuse by counts alone, for a request that has no samples yet (`num_least_tokens`). Takes nothing."""
        self.requests.check_room(request)

    def cancel(self, request: Request, reason: PolyheadError) -> None:
        """End a request before the next step: the one way out for cancels, deadlines and disconnects. Idempotent."""
        if not request.is_ended:
            with contextlib.suppress(Unavailable):  # a stopped engine has ended every request
                self._post(lambda: self.requests.abort(request, reason))

    def activate(self, active: ActiveSet) -> Future[SwapReport]:
        """Make `active` what new requests use, between two steps."""
        return self._between_steps(partial(self._flip, active))

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
            num_open=len(self.requests),
            is_running=self._thread.is_alive(),
            longest_gap_s=self.gaps.longest_s(self.requests.clock()),
        )

    def leased_digests(self) -> dict[str, int]:
        """Digest to the number of open requests on it: what they hold, and the versions that those without a lease will."""
        return self.requests.leased_digests()

    def leased_names(self) -> dict[str, int]:
        """Head name to the number of running requests on any version of it."""
        return self.requests.leased_names()

    def drop_head(self, digest: str) -> None:
        """A head is no longer in memory: forget what it computed for cached text, and its recorded steps."""

        def forget() -> None:
            self.tree.forget_digest(digest)
            self.heads.forget(digest)

        self._post(forget)

    def warm_up(self, head: ServedHead) -> None:
        """Run a head once on random states, on the caller's thread beside the engine. Raises DataLoss if its output is not finite.

        On a GPU a policy head's decode steps are recorded then, one size between two steps, so that none is in the traffic after its swap.
        """
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(CANARY_TOKENS, self.trunk.cache.states.shape[1], generator=generator)
        self.heads.try_out(head.live, states)
        if head.manifest.kind is HeadKind.POLICY:
            for size in self._recorded_sizes:
                record = partial(self.heads.record, head.live, size)
                self._between_steps(record).result() if self._thread.is_alive() else record()

    # ---- the engine's thread

    def step(self, *, goes_on: bool = True) -> bool:
        """Advance everything once. Returns whether there was anything to do. With `goes_on` False no step is left under way (ahead.py)."""
        started_at = self.requests.clock()
        self.requests.expire(started_at)
        batch = self.stepper.under_way
        if batch is not None:
            self.stepper.land(goes_on=goes_on)
        else:
            batch = self.scheduler.schedule(self.active, started_at)
            self.requests.announce_leases()
            self.requests.end_refused()
            self.stepper.end_unreadable()
            if not batch.is_empty:
                self.stepper.forward(batch)
        self.counters.steps += not batch.is_empty
        num_finished = self.stepper.finish_scored()
        self.outbox.flush()
        self.last_step_at = self.requests.clock()
        if not batch.is_empty:
            self.scheduler.pace.note_step(batch, self.last_step_at - started_at, self.last_step_at)
        self.gaps.note(self.last_step_at, has_worked=not batch.is_empty)
        return not batch.is_empty or num_finished > 0

    def _flip(self, active: ActiveSet) -> SwapReport:
        """The swap: one pointer. No block is touched; running requests hold what they leased, and followers turn to the new set."""
        started_at = time.monotonic()
        self.active = active
        leased = [request for request in self.requests.list() if request.lease is not None]
        to_abort = [request for request in leased if request.on_swap is OnSwap.ABORT]
        for request in to_abort:
            self.requests.abort(request, Aborted(f"generation {active.generation} was activated"))
        num_following = sum(self.scheduler.follower.turn(request, active) for request in leased if request.on_swap is OnSwap.FOLLOW)
        self.counters.swaps += 1
        self.last_swap_pause_s = time.monotonic() - started_at
        return SwapReport(self.last_swap_pause_s, len(leased) - len(to_abort) - num_following, len(to_abort), num_following)

    def _enter(self, request: Request) -> None:
        if request.is_ended:
            return
        request.num_open = len(request.samples)
        request.num_state_bytes = self.state_bytes if request.return_states else 0
        self.scheduler.add(request)

    # ---- the loop

    def _run(self) -> None:
        use_device(self.trunk.device)
        if self.num_threads:
            use_torch_threads(self.num_threads)
        while not self._is_stopping:
            self._empty_inbox()
            if not self._step_safely():
                self._wait()
        self._end_all(Unavailable("the server is shutting down", retry_after_s=1.0))

    def _step_safely(self, step: Callable[[], bool] | None = None) -> bool:
        """A step; if it raises, the requests in the pools end and the engine goes on, unless its GPU does not: then the process ends."""
        try:
            return (step or self.step)()
        except Exception:
            logger.exception("an engine step failed")
            for device in (self.trunk.device, self.heads.device):
                if problem := device_error(device):
                    self.requests.end_process(f"{device} does nothing more for this process: {problem}")
            self.stepper.forget()
            failed = {sample.request for sample in self.scheduler.running} | self.scheduler.forget_step()
            if not failed:  # it failed before anything ran: one that waits may fail every step
                failed = set(self.requests.list())
            for request in failed:
                self.requests.abort(request, PolyheadError("the engine failed on this batch: see the server's log"))
            self.outbox.flush()
            return bool(failed)

    def _wait(self) -> None:
        with self._wake:
            if not self._inbox and not self._is_stopping:
                self._wake.wait(timeout=1.0 if self.is_idle else 0.05)

    def _empty_inbox(self) -> None:
        """Act between two steps, with nothing under way."""
        if self._inbox and self.stepper.under_way is not None:
            self._step_safely(partial(self.step, goes_on=False))
        while self._inbox:
            try:
                self._inbox.popleft()()
            except Exception:
                logger.exception("an action between two steps failed")
        self.outbox.flush()

    def _between_steps(self, action: Callable[[], R]) -> Future[R]:
        """Run it on the engine's thread."""
        future: Future[R] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

        self._post(run)
        return future

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
        for request in self.requests.list():
            self.requests.abort(request, reason)
        self.outbox.flush()
