"""What generation, scoring and encoding share: how a request runs through the engine, and ends with its call."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from polyhead.heads.format.errors import Aborted, InvalidArgument
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.work.events import Accepted, Finished
from polyhead.server.engine.work.live import Lease
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.request import Priority, Request, Sample
from polyhead.server.metrics.metrics import Metrics
from polyhead.server.process.workers import Workers
from polyhead.server.rpc.door import Door, Resolve
from polyhead.server.rpc.interceptors import current_call
from polyhead.server.rpc.messages import answers
from polyhead.server.rpc.messages.requests import Work
from polyhead.server.rpc.stream import EventStream
from polyhead.server.rpc.tag import tag_of
from polyhead.v1 import types_pb2

M = TypeVar("M", bound=Message)
MAX_REQUEST_ID = 128
LOOP_TOKENS = 4096  # that one piece of work on the event loop may go through: some milliseconds


@dataclass(frozen=True, slots=True)
class Frontend:
    """What stands between the wire and the engine."""

    engine: Engine
    door: Door
    trunk_id: str
    precision: str
    workers: Workers
    metrics: Metrics
    resolving: Callable[[], AbstractContextManager[Resolve]]  # heads that it finds stay in memory until the block ends

    def request_id(self, given: str) -> str:
        """The message's own request id, or the call's."""
        if len(given) > MAX_REQUEST_ID or not given.isprintable():
            raise InvalidArgument(f"a request id has at most {MAX_REQUEST_ID} printable characters", field="request_id")
        return given or current_call.get().request_id

    @contextlib.asynccontextmanager
    async def admitted(self, check: Callable[[M, Door, str], Work], message: M, request_id: str) -> AsyncIterator[tuple[Work, EventStream]]:
        """Check a call on a worker thread, then run it. The heads that it names stay in memory until its request holds them."""
        with self.resolving() as resolve:
            door = dataclasses.replace(self.door, resolve=resolve, check_room=self.check_room)
            work = await self.workers.run_sized(message.ByteSize(), check, message, door, request_id)
            stream = self._submit(work.request)
        try:
            yield work, stream
        finally:
            self._leave(work.request, stream)

    @contextlib.asynccontextmanager
    async def running(self, request: Request) -> AsyncIterator[EventStream]:
        """Submit a request. However the caller leaves this block, the request's work ends with it."""
        stream = self._submit(request)
        try:
            yield stream
        finally:
            self._leave(request, stream)

    def check_room(self, priority: Priority, num_tokens: int) -> None:
        """ResourceExhausted if a call of so many tokens would be refused however it goes on."""
        call = current_call.get()
        probe = Request("", _nowhere, {}, {}, priority=priority, num_least_tokens=num_tokens)
        probe.due_at, probe.principal = call.due_at, call.caller.principal
        self.engine.check_room(probe)

    def _submit(self, request: Request) -> EventStream:
        call = current_call.get()
        stream = EventStream(self._observe, call.unread)
        request.deliver, request.reader = stream.deliver, call.unread
        request.deadline_at, request.due_at, request.principal = call.deadline_at, call.due_at, call.caller.principal
        for sample in request.samples:  # here, where every request passes: a team's prompts are found by the team alone
            sample.sequence.salt = call.caller.cache_salt(sample.sequence.salt)
        self.engine.submit(request)
        return stream

    def _leave(self, request: Request, stream: EventStream) -> None:
        self.engine.cancel(request, Aborted("the call was cancelled"))
        stream.close(request)

    def _observe(self, event: Event) -> None:
        """What the histograms want to know of a request, when it is leased and when a sample of it is finished."""
        if isinstance(event, Accepted):
            self.metrics.queue_seconds.observe(event.waited_s)
        elif isinstance(event, Finished):
            self.metrics.observe_sample(answers.sample_facts(event.sample))

    async def made(self, messages: Iterator[M], num_tokens: int) -> AsyncIterator[M]:
        """Messages that hold so many tokens: large ones are made on a worker, one at a time, since the event loop is everybody's."""
        if num_tokens <= LOOP_TOKENS:
            for message in messages:
                yield message
            return
        while (made := await self._stay(self.workers.run(next, messages, None))) is not None:
            yield made

    async def _stay(self, work: Awaitable[M | None]) -> M | None:
        """Stay until it has ended, also if the caller goes away: what a message is made of belongs to one thread at a time."""
        task = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    async def score_prompts(self, samples: Iterable[Sample]) -> None:
        """Out-of-distribution scores of finished samples that asked for them, beside the event loop: d_model^2 work for each prompt."""
        waiting = [sample for sample in samples if sample.pooled is not None and tag_of(sample.request).ood is not None]
        if waiting:
            await self.workers.run(_score_prompts, waiting)

    def served(self, lease: Lease) -> types_pb2.Served:
        """Identity of what an answer is computed with."""
        return answers.served(lease, self.trunk_id, self.precision, self.door.tokenizer.sha256)


def _nowhere(request: Request, events: list[Event]) -> None:
    """A probe hears nothing."""


def _score_prompts(samples: list[Sample]) -> None:
    """Samples of one prompt have one row, and one score."""
    for sample in samples:
        tag = tag_of(sample.request)
        assert sample.pooled is not None
        assert tag.ood is not None
        if sample.prompt_index not in tag.ood_scores:
            tag.ood_scores[sample.prompt_index] = tag.ood.score(sample.pooled)
        sample.pooled = None
