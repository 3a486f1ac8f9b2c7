"""Events on their way from the engine's thread to a request's reader. They queue up here, so that the engine never blocks.

Their bytes are counted (unread.py), which limits what callers hold that do not read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from polyhead.server.engine.outbox import StepEvents
from polyhead.server.engine.work.events import Ended
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.rpc.unread import Account

EVENT_BYTES = 160  # of a token or another event that waits, in memory; what a sample holds is counted by the engine

logger = logging.getLogger(__name__)


class EventStream:
    """One request's events, on the event loop."""

    def __init__(self, observe: Callable[[Event], None], account: Account) -> None:
        self._observe = observe  # sees each event once, read or not
        self._account = account
        self._events: list[Event] = []
        self._ready = asyncio.Event()
        self._has_ended = False
        self._is_closed = False

    def deliver(self, request: Request, events: list[Event]) -> None:
        """Called on the event loop, once a step."""
        self._events.extend(events)
        self._account.hold(EVENT_BYTES * len(events))
        self._has_ended = isinstance(events[-1], Ended)
        self._ready.set()
        try:
            for event in events:
                self._observe(event)
        except Exception:
            logger.exception("metrics of events could not be recorded; the events were delivered")
        if self._is_closed:
            self._drop(request)
        self._account.check()

    def sent(self, sample: Sample) -> None:
        """A sample was sent, or is dropped: release its memory."""
        self._account.release(sample.num_held)
        sample.let_go()

    def close(self, request: Request) -> None:
        """The reader has left. When the engine has finished the request, too, its memory is released."""
        self._is_closed = True
        self._drop(request)

    def _drop(self, request: Request) -> None:
        self._account.release(EVENT_BYTES * len(self._events))
        self._events = []
        if self._has_ended:
            for sample in request.samples:
                self.sent(sample)
            request.let_go()

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Everything that has come since the last read, until the request has ended. A slow reader gets longer lists."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            events, self._events = self._events, []
            try:
                yield events
            finally:
                self._account.release(EVENT_BYTES * len(events))
            if events and isinstance(events[-1], Ended):
                return

    async def events(self) -> AsyncIterator[Event]:
        """One event at a time."""
        async for events in self.batches():
            for event in events:
                yield event


def hand_over(loop: asyncio.AbstractEventLoop, outbox: StepEvents) -> None:
    """The engine's sink: one call into the event loop a step carries all requests' events."""
    loop.call_soon_threadsafe(_dispatch, outbox)


def _dispatch(outbox: StepEvents) -> None:
    for request, events in outbox.items():
        try:
            request.deliver(request, events)
        except Exception:  # of this request alone: the others' events must not be lost with it
            logger.exception("events of a request could not be delivered")
