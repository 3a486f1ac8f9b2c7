"""Calls over grpc's asyncio API: errors translated, retried by the one rule, cancelled when left. Beside connection.py."""
# ruff: noqa: ASYNC109  # timeout= is the deadline that the server is told, not a local timer

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from polyhead.client.errors import PolyheadError, from_rpc_error
from polyhead.client.transport import ChannelOwner, Deadline, Endpoint, GuardedIterator, Stubs, retry_delay

__all__ = ["AioCalls", "AioConnection", "Pick"]

T = TypeVar("T")
Pick = Callable[[Stubs], Any]


class AioCalls(Protocol):
    """What an asyncio client makes its calls over: `Calls`, awaited."""

    async def unary(self, pick: Pick, request: Any, timeout: float | None) -> Any:
        """One request, one answer."""

    async def upload(self, pick: Pick, messages: Callable[[], Iterator[Any]], timeout: float | None) -> Any:
        """Many messages, one answer. `messages` is called anew for a retry; an error of its own is raised as it is."""

    def stream(self, pick: Pick, request: Any, timeout: float | None) -> AsyncGenerator[Any, None]:
        """One request, many messages. Leaving the generator, however, cancels the call."""
        raise NotImplementedError

    async def read_all(self, pick: Pick, request: Any, timeout: float | None, take: Callable[[Any], None]) -> None:
        """Hand every message of a stream to `take`."""
        async with aclosing(self.stream(pick, request, timeout)) as messages:
            async for message in messages:
                take(message)

    async def close(self) -> None:
        """Close the channels; what still runs is cancelled."""


class AioConnection(AioCalls):
    """One server, as seen from one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint.of_one_server()
        self._owner = ChannelOwner(lambda: endpoint.open_channel(grpc.aio))
        # Uploads go over the synchronous API, driven from here: where a server answers before it has read everything (a refused
        # push), grpc.aio 1.85 puts "Internal error from Core" in place of its status. And weights are read in grpc's thread.
        self._upload_owner = ChannelOwner(lambda: endpoint.open_channel(grpc))

    async def unary(self, pick: Pick, request: Any, timeout: float | None) -> Any:
        async def call(deadline: Deadline) -> Any:
            return await pick(self._owner.stubs())(request, **self._call_options(deadline))

        return await self._retried(call, timeout)

    async def upload(self, pick: Pick, messages: Callable[[], Iterator[Any]], timeout: float | None) -> Any:
        async def call(deadline: Deadline) -> Any:
            return await self._upload_once(pick, messages(), deadline)

        return await self._retried(call, timeout)

    async def stream(self, pick: Pick, request: Any, timeout: float | None) -> AsyncGenerator[Any, None]:
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

    async def close(self) -> None:
        channel, upload_channel = self._owner.release(), self._upload_owner.release()
        if channel is not None:
            await channel.close()
        if upload_channel is not None:
            upload_channel.close()

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
        guarded = GuardedIterator(messages)
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        call = pick(self._upload_owner.stubs()).future(guarded, **self._call_options(deadline))
        call.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        try:
            await done.wait()
            return call.result()
        except grpc.RpcError:
            if guarded.failure is not None:
                raise guarded.failure from None
            raise
        finally:
            call.cancel()

    def _call_options(self, deadline: Deadline) -> dict[str, Any]:
        return {"timeout": deadline.remaining(), "metadata": self.endpoint.metadata}
