"""Calls to a fleet over grpc's asyncio API, by the rules of connection.py."""
# ruff: noqa: ASYNC109  # timeout= is the deadline that the server is told, not a local timer

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

from polyhead.client.aio_connection import AioCalls, AioConnection, Pick
from polyhead.client.errors import FailedPrecondition, PolyheadError, Unavailable
from polyhead.client.fleet.attempts import Attempts
from polyhead.client.fleet.connection import LIST_S, NOT_PRIMARY
from polyhead.client.fleet.delivery import Delivery
from polyhead.client.fleet.routing import Place, Replicas, place_of, weight_of
from polyhead.client.results.records import Replica
from polyhead.client.transport import Deadline, Endpoint
from polyhead.client.wire import convert
from polyhead.v1 import fleet_pb2, generation_pb2

__all__ = ["AioFleetConnection"]


class AioFleetConnection(AioCalls):
    """A connection for each replica."""

    def __init__(self, endpoint: Endpoint) -> None:
        given = endpoint.of_each_server()
        self._endpoint = endpoint
        self._replicas = Replicas(tuple(given))
        self._connections = {address: AioConnection(each) for address, each in given.items()}
        self._first = asyncio.Lock()

    async def unary(self, pick: Pick, request: Any, timeout: float | None) -> Any:
        deadline = Deadline(timeout)
        match place_of(pick):
            case Place.PRIMARY:
                return await self._at_primary(lambda primary: primary.unary(pick, request, deadline.remaining()))
            case Place.LOOKUP:
                return await self._look_up(pick, request, deadline)
        attempts = Attempts(self._replicas, deadline)
        while True:
            await self._refresh()
            with self._replicas.lent(weight_of(request), attempts.tried) as address:
                try:
                    return await self._to(address).unary(pick, request, deadline.remaining())
                except PolyheadError as error:
                    wait_s = attempts.failed(address, error)
            await asyncio.sleep(wait_s)

    async def upload(self, pick: Pick, messages: Callable[[], Iterator[Any]], timeout: float | None) -> Any:
        deadline = Deadline(timeout)
        return await self._at_primary(lambda primary: primary.upload(pick, messages, deadline.remaining()))

    async def stream(self, pick: Pick, request: Any, timeout: float | None) -> AsyncGenerator[Any, None]:
        if place_of(pick) is not Place.ANYWHERE:
            await self._find_primary()
            found = self._to(self._replicas.primary).stream(pick, request, timeout)
        elif isinstance(request, generation_pb2.GenerateRequest):
            found = self._generate(pick, request, timeout)
        else:
            found = self._read(pick, request, timeout)
        async with aclosing(found) as messages:
            async for message in messages:
                yield message

    async def close(self) -> None:
        for each in self._connections.values():
            await each.close()

    async def _at_primary(self, call: Callable[[AioConnection], Awaitable[Any]]) -> Any:
        """Once more where another server has become the primary."""
        await self._find_primary()
        address = self._replicas.primary
        try:
            return await call(self._to(address))
        except FailedPrecondition as error:
            if error.reason != NOT_PRIMARY:
                raise
            self._replicas.expire()
            await self._find_primary()
            if self._replicas.primary == address:
                raise self._replicas.absent_primary(error) from None
        return await call(self._to(self._replicas.primary))

    async def _look_up(self, pick: Pick, request: Any, deadline: Deadline) -> Any:
        await self._find_primary()
        absent: Unavailable | None = None
        for address in self._replicas.primary_first():
            try:
                return await self._to(address).unary(pick, request, deadline.remaining())
            except Unavailable as error:
                self._replicas.note_down(address)
                absent = absent or error
        assert absent is not None, "nobody was asked"
        raise absent

    async def _find_primary(self) -> None:
        if self._replicas.may_be_another:
            await self._refresh()

    async def _generate(self, pick: Pick, request: generation_pb2.GenerateRequest, timeout: float | None) -> AsyncGenerator[Any, None]:
        """Only samples that were not delivered are asked for again."""
        deadline, delivery = Deadline(timeout), Delivery(request)
        attempts = Attempts(self._replicas, deadline)
        while True:
            await self._refresh()
            with self._replicas.lent(weight_of(request), attempts.tried) as address:
                try:
                    for part in delivery.requests():
                        async with aclosing(self._to(address).stream(pick, part, deadline.remaining())) as messages:
                            async for message in messages:
                                for each in delivery.take(message):
                                    yield each
                        for each in delivery.finish():
                            yield each
                    if delivery.is_done:
                        return
                    raise Unavailable(f"{address} shuts down")
                except PolyheadError as error:
                    if not delivery.can_go_on:
                        raise
                    wait_s = attempts.failed(address, error)
            await asyncio.sleep(wait_s)

    async def _read(self, pick: Pick, request: Any, timeout: float | None) -> AsyncGenerator[Any, None]:
        """A stream that goes on elsewhere only before its first message."""
        deadline, has_started = Deadline(timeout), False
        attempts = Attempts(self._replicas, deadline)
        while True:
            await self._refresh()
            with self._replicas.lent(weight_of(request), attempts.tried) as address:
                try:
                    async with aclosing(self._to(address).stream(pick, request, deadline.remaining())) as messages:
                        async for message in messages:
                            has_started = True
                            yield message
                    return
                except PolyheadError as error:
                    if has_started:
                        raise
                    wait_s = attempts.failed(address, error)
            await asyncio.sleep(wait_s)

    def _to(self, address: str) -> AioConnection:
        if address not in self._connections:
            self._connections[address] = AioConnection(self._endpoint.at(address))
        return self._connections[address]

    async def _refresh(self) -> None:
        if not self._replicas.is_known:
            async with self._first:
                await self._list()
        else:
            await self._list()

    async def _list(self) -> None:
        if not self._replicas.is_due():
            return
        for address in self._replicas.may_be_primary():
            found: list[Replica] = []
            listing = self._to(address).stream(lambda stubs: stubs.fleet.ListReplicas, fleet_pb2.ListReplicasRequest(), LIST_S)
            try:
                async with aclosing(listing) as messages:
                    async for message in messages:
                        found = [convert.replica(each) for each in message.replicas]
            except PolyheadError as error:  # it follows another one, or is away
                if isinstance(error, Unavailable):
                    self._replicas.note_down(address)
                continue
            self._replicas.take(address, found)
            return
        self._replicas.is_known = True  # who served goes on serving
