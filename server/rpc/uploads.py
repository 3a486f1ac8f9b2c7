"""The messages of an upload, as the contract wants them: a header first, then its parts; a stream that stops sending is given up.

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


class Upload(Generic[M]):
    """One call's upload, read by one coroutine."""

    def __init__(self, messages: AsyncIterator[M], what: str, idle_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.waited_s = 0.0  # for messages, in all
        self._messages = messages
        self._what = what  # "push", "fit": for errors
        self._idle_s = idle_s
        self._now = now

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
            raise DeadlineExceeded(f"nothing arrived for {self._idle_s:g} s: the {self._what} is given up") from None
        finally:
            self.waited_s += self._now() - began_at
