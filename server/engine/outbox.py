"""A step's events are gathered, and handed over in one call when the step has ended. The engine never waits for a reader."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from polyhead.server.engine.work.events import Finished
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.engine.work.tokens import tail

logger = logging.getLogger(__name__)

StepEvents = dict[Request, list[Event]]  # one step's events, by request


def deliver_now(events: StepEvents) -> None:
    """Deliver on the engine's own thread: for use without an event loop."""
    for request, its_events in events.items():
        request.deliver(request, its_events)


class Outbox:
    """Belongs to the engine's thread."""

    def __init__(self) -> None:
        self.sink: Callable[[StepEvents], None] = deliver_now  # set before the engine starts; never blocks
        self._events: StepEvents = {}

    def add(self, request: Request, event: Event) -> None:
        self._events.setdefault(request, []).append(event)

    def add_finished(self, sample: Sample) -> None:
        """A sample is complete: its bytes count as unread from now on."""
        sample.num_held = sample.num_bytes
        sample.request.reader.hold(sample.num_held)
        try:
            text = tail(sample)
        except Exception:  # the tokenizer failed: the sample's ids are whole
            logger.exception("the end of a sample's text could not be made")
            text = ""
        self.add(sample.request, Finished(sample, text))

    def flush(self) -> None:
        """Hand over what was gathered, in one call."""
        if self._events:
            events, self._events = self._events, {}
            with contextlib.suppress(RuntimeError):  # the readers' event loop is gone
                self.sink(events)
