"""Fleet and AsyncFleet: Client and AsyncClient for a primary and its followers, with pins. Knows names and options, no channel."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from polyhead.client.aio import AsyncClient
from polyhead.client.client import Client
from polyhead.client.fleet.aio_connection import AioFleetConnection
from polyhead.client.fleet.connection import FleetConnection
from polyhead.client.fleet.pins import Pinning
from polyhead.client.results.records import Generation

__all__ = ["AsyncFleet", "Fleet"]


class Fleet(Client):
    """A client of several servers: `target` is the primary, which knows the others. Every method of Client.

    What changes something goes to the primary; generation, scoring, encoding and tokenizing to the replica with the least to do. A replica
    that does not answer is passed over, and only samples that were not delivered are asked for again, of the same seeds and generation.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connection = FleetConnection(self._connection.endpoint)

    @contextlib.contextmanager
    def pinned(self, generation: Generation | None = None) -> Iterator[Self]:
        """A fleet whose generations and scores are all of one generation, by default the active one: a batch never mixes two.

        Raises FailedPrecondition once that generation's versions are gone.
        """
        pin = generation or self.generations(1)[0]
        pinned = copy.copy(self)
        pinned._connection = Pinning(self._connection, pin.number, pin.history_id)  # type: ignore[assignment]
        yield pinned


class AsyncFleet(AsyncClient):
    """Fleet for asyncio code: every method of AsyncClient."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connection = AioFleetConnection(self._connection.endpoint)

    @contextlib.asynccontextmanager
    async def pinned(self, generation: Generation | None = None) -> AsyncIterator[Self]:
        """As Fleet.pinned."""
        pin = generation or (await self.generations(1))[0]
        pinned = copy.copy(self)
        pinned._connection = Pinning(self._connection, pin.number, pin.history_id)  # type: ignore[assignment]
        yield pinned
