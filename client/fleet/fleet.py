"""Fleet and AsyncFleet: Client and AsyncClient for a primary and its followers, with pins. Knows names and options, no channel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from polyhead.client.addresses import addresses_of
from polyhead.client.aio import AsyncClient
from polyhead.client.aio_connection import AioCalls
from polyhead.client.client import Client
from polyhead.client.connection import Calls
from polyhead.client.fleet.aio_connection import AioFleetConnection
from polyhead.client.fleet.connection import FleetConnection
from polyhead.client.fleet.pins import PinnedCalls
from polyhead.client.results.records import Generation
from polyhead.client.transport import Endpoint

__all__ = ["AsyncFleet", "Fleet", "open_client"]


class Fleet(Client):
    """A client of several servers. `target` is the primary, which knows the others, or several of them: "a:50051,b:50051".

    What changes something goes to the primary; generation, scoring, encoding and tokenizing to the replica with the least to do; look-ups
    to another one only while the primary is away. A replica that does not answer is passed over, and only samples that were not delivered
    are asked for again, of the same seeds and generation. Token and certificates are the same for all servers.
    """

    def _connect(self, endpoint: Endpoint) -> Calls:
        return FleetConnection(endpoint)

    @contextlib.contextmanager
    def pinned(self, generation: Generation | None = None) -> Iterator[Self]:
        """A fleet whose generations and scores are all of one generation, by default the active one: a batch never mixes two.

        Raises FailedPrecondition once that generation's versions are gone.
        """
        pin = generation or self.generations(1)[0]
        yield self._over(PinnedCalls(self._connection, pin.number, pin.history_id))


class AsyncFleet(AsyncClient):
    """Fleet for asyncio code: every method of AsyncClient."""

    def _connect(self, endpoint: Endpoint) -> AioCalls:
        return AioFleetConnection(endpoint)

    @contextlib.asynccontextmanager
    async def pinned(self, generation: Generation | None = None) -> AsyncIterator[Self]:
        """As Fleet.pinned."""
        pin = generation or (await self.generations(1))[0]
        yield self._over(PinnedCalls(self._connection, pin.number, pin.history_id))


def open_client(target: str, **options: Any) -> Client:
    """A Client of one server, a Fleet of several: "a:50051,b:50051". `options`: those of both."""
    return Client(target, **options) if len(addresses_of(target)) == 1 else Fleet(target, **options)
