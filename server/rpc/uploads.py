"""The messages of an upload, as the contract defines them: a header first, then its parts. A stream that stops sending is ended.

Knows of a message only its oneof `part`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.rpc.errors import DeadlineExceeded


class UploadMessage(Protocol):
    """PushHeadRequest, FitOodRequest and the like."""

    def WhichOneof(self, oneof_group: Any, /) -> str | None: ...  # noqa: N802  protobuf's name


M = TypeVar("M", bound=UploadMessage)
RATE_WINDOW_S = 60.0  # of waiting for messages, over which the rate is measured


class Upload(Generic[M]):
    """One call's upload, read by one coroutine."""

    def __init__(self, messages: AsyncIterator[M], what: str, idle_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.waited_s = 0.0  # for messages, in all
        self._messages = messages
        self._what = what  # "push", "fit": for errors
        self._idle_s = idle_s
        self._now = now
        self._rated_s, self._num_bytes = 0.0, 0  # at the last check, and since then; only time spent waiting for the sender counts

    def check_rate(self, num_bytes: int, least_per_s: int) -> None:
        """Count received bytes. DeadlineExceeded if they come too slowly: an upload takes one of a few places."""
        self._num_bytes += num_bytes
        waited_s = self.waited_s - self._rated_s
        if waited_s < RATE_WINDOW_S:
            return
        if self._num_bytes < least_per_s * waited_s:
            problem = f"{self._num_bytes} bytes arrived in {waited_s:.0f} s, at least {least_per_s} a second are required"
            raise DeadlineExceeded(f"the {self._what} was ended: {problem}")
        self._rated_s, self._num_bytes = self.waited_s, 0

    async def header(self) -> Any:
        """The first message's header."""
        message = await self._next()
        if message is None or message.WhichOneof("part") != "header":
            raise InvalidArgument(f"the first message of a {self._what} must be its header", field="header")
        return message.header  # type: ignore[attr-defined]  # as its oneof says

    async def parts(self, name: str, plural: str) -> AsyncIterator[Any]:
        """What follows the header, each of this one kind."""
        while (message := await self._next()) is not None:
            if message.WhichOneof("part") != name:
                raise InvalidArgument(f"after the header only {plural} may come", field=name)
            yield getattr(message, name)

    async def _next(self) -> M | None:
        began_at = self._now()
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(self._messages, None)
        except TimeoutError:
            raise DeadlineExceeded(f"nothing arrived for {self._idle_s:g} s: the {self._what} was ended") from None
        finally:
            self.waited_s += self._now() - began_at
