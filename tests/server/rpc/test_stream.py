"""The hand-over to readers: an observer that fails takes nobody's events away, and tokens that wait become one list."""

from __future__ import annotations

import asyncio

import pytest

from polyhead.server.engine.work.events import Ended
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.request import Request
from polyhead.server.rpc.stream import EventStream, hand_over
from polyhead.server.rpc.unread import Unread


def request() -> Request:
    return Request("r", lambda *_: None, {}, {})


async def test_a_failing_observer_harms_no_stream(caplog: pytest.LogCaptureFixture) -> None:
    """One caller's unobservable sample kept the events of every later request in the same step, the last one included."""

    def explode(event: Event) -> None:
        raise ZeroDivisionError

    account = Unread(1 << 20, 60.0).open("")
    streams = [EventStream(explode, account), EventStream(lambda event: None, account)]
    outbox = {}
    for stream in streams:
        waiting = request()
        waiting.deliver = stream.deliver
        outbox[waiting] = [Ended(None)]
    hand_over(asyncio.get_running_loop(), outbox)
    for stream in streams:
        assert [event async for event in stream.events()] == [Ended(None)]
    assert "could not be recorded" in caplog.text


async def test_a_slow_reader_gets_longer_lists() -> None:
    stream = EventStream(lambda event: None, Unread(1 << 20, 60.0).open(""))
    for _ in range(5):
        stream.deliver(request(), [Event()])
    stream.deliver(request(), [Ended(None)])
    assert [len(events) async for events in stream.batches()] == [6]
