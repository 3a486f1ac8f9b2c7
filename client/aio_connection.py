"""Calls over grpc's asyncio API: errors translated, retried by the one rule, cancelled when left. Beside connection.py."""
# ruff: noqa: ASYNC109  # timeout= is the deadline that the server is told, not a local timer

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import grpc.aio
from polyhead.client.errors import PolyheadError, from_rpc_error
from polyhead.client.transport import ChannelOwner, Deadline, Endpoint, Stubs, retry_delay

__all__ = ["AioConnection"]

T = TypeVar("T")
Pick = Callable[[Stubs], Any]


class AioConnection:
    """One server, as seen from one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._owner = ChannelOwner(self._open_channel)

    async def unary(self, pick: Pick, request: Any, timeout: float | None) -> Any:
        """One request, one answer."""

        async def call(deadline: Deadline) -> Any:
            return await pick(self._owner.stubs())(request, **self._call_options(deadline))

        return await self._retried(call, timeout)

    async def upload(self, pick: Pick, messages: Callable[[], Iterator[Any]], timeout: float | None) -> Any:
        """Many messages, one answer. `messages` is called anew for a retry; an error of its own is raised as it is."""

        async def call(deadline: Deadline) -> Any:
            return await self._upload_once(pick, messages(), deadline)

        return await self._retried(call, timeout)

    async def stream(self, pick: Pick, request: Any, timeout: float | None) -> AsyncGenerator[Any, None]:
        """One request, many messages. Leaving the generator, however, cancels the call."""
        deadline = Deadline(timeout)
        for num_retries in itertools.count():
            has_started = False
            call = pick(self._owner.stubs())(request, **self._call_options(deadline))
            try:
                async for message in call:
                    has_started = True
                    yield message
                return
            except grpc.RpcError as error:
                failure = from_rpc_error(error, self.endpoint.target)
            finally:
                call.cancel()  # a call that is only dropped would run on (grpc #43462)
            if has_started:
                raise failure
            await asyncio.sleep(retry_delay(failure, num_retries, deadline))

    async def read_all(self, pick: Pick, request: Any, timeout: float | None, take: Callable[[Any], None]) -> None:
        """Hand every message of a stream to `take`."""
        async with aclosing(self.stream(pick, request, timeout)) as messages:
            async for message in messages:
                take(message)

    async def close(self) -> None:
        channel = self._owner.release()
        if channel is not None:
            await channel.close()

    async def _retried(self, call: Callable[[Deadline], Awaitable[T]], timeout: float | None) -> T:
        deadline = Deadline(timeout)
        for num_retries in itertools.count():
            try:
                return await call(deadline)
            except grpc.RpcError as error:
                failure: PolyheadError = from_rpc_error(error, self.endpoint.target)
            await asyncio.sleep(retry_delay(failure, num_retries, deadline))
        raise AssertionError("unreachable: count() never ends")

    async def _upload_once(self, pick: Pick, messages: Iterator[Any], deadline: Deadline) -> Any:
        call = pick(self._owner.stubs())(**self._call_options(deadline))
        try:
            for message in messages:
                await call.write(message)
            await call.done_writing()
            return await call
        except asyncio.InvalidStateError:  # the server answered before it had read everything
            return await call
        finally:
            call.cancel()

    def _call_options(self, deadline: Deadline) -> dict[str, Any]:
        return {"timeout": deadline.remaining(), "metadata": self.endpoint.metadata}

    def _open_channel(self) -> grpc.aio.Channel:
        endpoint = self.endpoint
        if endpoint.uses_tls:
            return grpc.aio.secure_channel(endpoint.target, endpoint.credentials(), options=endpoint.channel_options())
        return grpc.aio.insecure_channel(endpoint.target, options=endpoint.channel_options())
