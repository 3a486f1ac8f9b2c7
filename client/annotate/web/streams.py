"""Server-sent events of one turn: counts while it is drawn, then all replies in one event, or why there are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response, StreamingResponse

from polyhead.client.annotate.storage.database import Row
from polyhead.client.annotate.web import state
from polyhead.client.annotate.web.access import Site

PING_S = 15.0
RETRY_MS = 2000
Event = tuple[str, dict[str, Any]]
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def turn_events(site: Site, turn: Row, last_event_id: str) -> Response:
    """The stream; it ends with `ready` or `failed`. After a break in the line it goes on with what is so now: events count states."""
    first = int(last_event_id) + 1 if last_event_id.isdigit() else 1
    return StreamingResponse(_events(site, turn, first), media_type="text/event-stream", headers=_HEADERS)


async def _events(site: Site, turn: Row, number: int) -> AsyncGenerator[bytes, None]:
    yield f"retry: {RETRY_MS}\n\n".encode()
    async with contextlib.aclosing(_with_pings(site.turns.follow(turn))) as events:
        async for event in events:
            if event is None:
                yield b": ping\n\n"
                continue
            kind, data = event
            if kind == "ready":
                view = site.db.one("SELECT * FROM views WHERE turn_id = ?", turn.id)
                assert view is not None, turn.id
                data = state.shown_view(site.db, view)
            yield f"id: {number}\nevent: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
            number += 1


async def _with_pings(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event | None, None]:
    """The events, and None where nothing happened for a while: proxies close lines that are silent."""
    following: asyncio.Task[Any] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait([following], timeout=PING_S)
            if not done:
                yield None
                continue
            event, following = following.result(), None
            if event is None:
                return
            yield event
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait([following])
        await events.aclose()
