"""Calls to a fleet over grpc's asyncio API, by the rules of connection.py."""
# ruff: noqa: ASYNC109  # timeout= is the deadline that the server is told, not a local timer

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from polyhead.client.aio_connection import AioConnection, Pick
from polyhead.client.errors import PolyheadError, Unavailable
from polyhead.client.fleet.attempts import Attempts
from polyhead.client.fleet.connection import LIST_S
from polyhead.client.fleet.delivery import Delivery
from polyhead.client.fleet.routing import Replicas, is_anywhere, weight_of
from polyhead.client.results.records import Replica
from polyhead.client.transport import Deadline, Endpoint
from polyhead.client.wire import convert
from polyhead.v1 import fleet_pb2, generation_pb2

__all__ = ["AioFleetConnection"]


class AioFleetConnection(AioConnection):
    """The primary's connection, and one for each replica."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._replicas = Replicas(endpoint.target)
        self._others: dict[str, AioConnection] = {}
        self._first = asyncio.Lock()

    async def unary(self, pick: Pick, request: Any, timeout: float | None) -> Any:
        if not is_anywhere(pick):
            return await super().unary(pick, request, timeout)
        deadline = Deadline(timeout)
        attempts = Attempts(self._replicas, deadline)
        while True:
            await self._refresh()
            with self._replicas.lent(weight_of(request), attempts.tried) as address:
                try:
                    return await self._to(address).unary(pick, request, deadline.remaining())
                except PolyheadError as error:
                    wait_s = attempts.failed(address, error)
            await asyncio.sleep(wait_s)

    async def stream(self, pick: Pick, request: Any, timeout: float | None) -> AsyncGenerator[Any, None]:
        if not is_anywhere(pick):
            found = super().stream(pick, request, timeout)
        elif isinstance(request, generation_pb2.GenerateRequest):
            found = self._generate(pick, request, timeout)
        else:
            found = self._read(pick, request, timeout)
        async with aclosing(found) as messages:
            async for message in messages:
                yield message

    async def close(self) -> None:
        await super().close()
        for each in self._others.values():
            await each.close()

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
        if address not in self._others:
            self._others[address] = AioConnection(replace(self.endpoint, target=address))
        return self._others[address]

    async def _refresh(self) -> None:
        if not self._replicas.is_known:
            async with self._first:
                await self._list()
        else:
            await self._list()

    async def _list(self) -> None:
        if not self._replicas.is_due():
            return
        found: list[Replica] = []
        listing = super().stream(lambda stubs: stubs.fleet.ListReplicas, fleet_pb2.ListReplicasRequest(), LIST_S)
        try:
            async with aclosing(listing) as messages:
                async for message in messages:
                    found = [convert.replica(each) for each in message.replicas]
        except PolyheadError:  # the primary is away: who served goes on serving
            self._replicas.is_known = True
        else:
            self._replicas.take(found)
