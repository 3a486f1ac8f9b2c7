"""Shared by generation, scoring and encoding: run a request through the engine, and end it with its call."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from polyhead.heads.format.errors import Aborted, InvalidArgument, NotFound
from polyhead.server.engine.work.events import Accepted, Finished
from polyhead.server.engine.work.live import Lease, ServedHead
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.request import Priority, Request, Sample
from polyhead.server.engine.work.sampling import Draws
from polyhead.server.process.services import Services
from polyhead.server.process.workers import carried_through
from polyhead.server.rpc.caps import default_priority
from polyhead.server.rpc.finishing import is_to_score, sample_facts, score_prompts
from polyhead.server.rpc.interceptors import current_call
from polyhead.server.rpc.messages import answers
from polyhead.server.rpc.messages.request_parts import Work
from polyhead.server.rpc.named import NamedGeneration
from polyhead.server.rpc.request_context import CheckRoom, RequestContext
from polyhead.server.rpc.stream import EventStream
from polyhead.server.rpc.tag import tag_of
from polyhead.v1 import types_pb2

M = TypeVar("M", bound=Message)
MAX_REQUEST_ID = 128
EVENT_LOOP_TOKENS = 4096  # most that one piece of work on the event loop may process: some milliseconds
EVENT_LOOP_BYTES, EVENT_LOOP_PARTS = 16 << 10, 64  # of a message whose counts are checked on the event loop; its prompts or items


class Counted(Protocol):
    """A call that was checked by its counts."""

    def check_room(self, check_room: CheckRoom) -> None:
        """ResourceExhausted if the engine would refuse it however it goes on."""


C = TypeVar("C", bound=Counted)


@dataclass(frozen=True, slots=True)
class CallRunner:
    """Between a servicer and the engine. Holds nothing of a call."""

    services: Services

    def request_id(self, given: str) -> str:
        """The message's own request id, or the call's."""
        if len(given) > MAX_REQUEST_ID or not given.isprintable():
            raise InvalidArgument(f"a request id has at most {MAX_REQUEST_ID} printable characters", field="request_id")
        return given or current_call.get().request_id

    @contextlib.contextmanager
    def context(self, named: NamedGeneration | None = None) -> Iterator[RequestContext]:
        """What one request is checked against. The heads that it finds stay in memory until the block ends.

        With a generation that the request names, heads are looked up in that one.
        """
        active = self.services.registry.active
        if named is not None:
            named.check_here(active)
        with self.services.registry.resolving() as resolve:

            def resolve_named(reference: str, field: str) -> ServedHead:
                assert named is not None
                try:
                    return resolve(named.version_of(reference, active, self.services), field)
                except NotFound as error:
                    if "@" in reference:
                        raise
                    raise named.gone(error.message, self.services) from None

            found = resolve if named is None else resolve_named
            priority = default_priority(current_call.get().caller)
            yield RequestContext.of(self.services, found, self.check_room, priority, named)

    @contextlib.asynccontextmanager
    async def admitted(
        self,
        count: Callable[[M, RequestContext], C],
        check: Callable[[M, RequestContext, str, C | None], Work],
        message: M,
        num_parts: int,
        request_id: str,
        named: NamedGeneration | None = None,
    ) -> AsyncIterator[tuple[Work, EventStream]]:
        """Check a call by its counts, then as a whole on a worker thread, then run it. `num_parts`: prompts or items of the message.

        The counts of a short message are looked at here: under load most calls are refused for them, and a hop to another thread costs
        more than the check. The heads that a call names stay in memory until its request holds them.
        """
        counted, num_bytes = None, message.ByteSize()
        with self.context(named) as context:
            if num_bytes <= EVENT_LOOP_BYTES and num_parts <= EVENT_LOOP_PARTS:
                counted = count(message, context)
                counted.check_room(context.check_room)
            work = await self.services.workers.run_sized(num_bytes, check, message, context, request_id, counted)
            stream = self._submit(work.request)
        try:
            yield work, stream
        finally:
            self._cancel(work.request, stream)

    @contextlib.asynccontextmanager
    async def running(self, request: Request) -> AsyncIterator[EventStream]:
        """Submit a request. However the caller leaves this block, the request's work ends with it."""
        stream = self._submit(request)
        try:
            yield stream
        finally:
            self._cancel(request, stream)

    def check_room(self, priority: Priority, num_tokens: int, draws: Draws | None) -> None:
        """ResourceExhausted if a call of so many tokens, and of such samples, would be refused however it goes on."""
        call = current_call.get()
        probe = Request("", _ignore_events, {}, {}, priority=priority, num_least_tokens=num_tokens, draws=draws)
        probe.due_at, probe.principal = call.due_at, call.caller.principal
        self.services.engine.check_room(probe)

    def _submit(self, request: Request) -> EventStream:
        call = current_call.get()
        stream = EventStream(self._observe, call.unread)
        request.deliver, request.reader = stream.deliver, call.unread
        request.deadline_at, request.due_at, request.principal = call.deadline_at, call.due_at, call.caller.principal
        for sample in request.samples:  # here, where every request passes: a team's prompts are found by the team alone
            sample.sequence.salt = call.caller.cache_salt(sample.sequence.salt)
        tag_of(request).shows_queue = call.sees_all
        self.services.engine.submit(request)
        return stream

    def _cancel(self, request: Request, stream: EventStream) -> None:
        self.services.engine.cancel(request, Aborted("the call was cancelled"))
        stream.close(request)

    def _observe(self, event: Event) -> None:
        """Metrics of a request, when it is leased and when a sample of it is finished."""
        if isinstance(event, Accepted):
            self.services.metrics.queue_seconds.observe(event.waited_s)
        elif isinstance(event, Finished):
            self.services.metrics.observe_sample(sample_facts(event.sample))

    async def made(self, messages: Iterator[M], num_tokens: int) -> AsyncIterator[M]:
        """Messages that hold so many tokens: large ones are made on a worker, one at a time, since all calls share the event loop."""
        if num_tokens <= EVENT_LOOP_TOKENS:
            for message in messages:
                yield message
            return
        while (made := await carried_through(self.services.workers.run(next, messages, None))) is not None:
            yield made

    async def score_prompts(self, samples: Iterable[Sample]) -> None:
        """Out-of-distribution scores, on a worker thread."""
        if waiting := [sample for sample in samples if is_to_score(sample)]:
            await self.services.workers.run(score_prompts, waiting)

    def served(self, lease: Lease) -> types_pb2.Served:
        """Identity of what an answer is computed with."""
        return answers.served(lease, self.services.trunk_id, self.services.precision, self.services.tokenizer.sha256)


def _ignore_events(request: Request, events: list[Event]) -> None:
    """A probe gets no events."""
