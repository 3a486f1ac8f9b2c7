"""FleetService: followers of this server, and the list of those that serve. What a fleet is, is imported with its first follower."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.process.services import Services
from polyhead.server.rpc.errors import not_primary
from polyhead.v1 import fleet_pb2, fleet_pb2_grpc

if TYPE_CHECKING:
    from polyhead.server.fleet.primary import Fleet

LOOK_S = 1.0  # of a watch: silence changes a state without a word
Context = grpc.aio.ServicerContext[Any, Any]


class FleetServicer(fleet_pb2_grpc.FleetServiceServicer):
    """A follower has no followers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._fleet: Fleet | None = None
        if services.config.replicas:
            self._start()  # an activation then waits for them from the first moment on

    def _start(self) -> Fleet:
        if self._fleet is None:
            from polyhead.server.fleet.primary import Fleet

            self._fleet = Fleet(self._services)
        return self._fleet

    async def Follow(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[fleet_pb2.FollowRequest], context: Context
    ) -> None:
        self._refuse_follower()
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("part") != "hello":
            raise InvalidArgument("a follower says Hello first", field="part")
        write_lock = asyncio.Lock()

        async def write(message: fleet_pb2.FollowResponse) -> None:
            async with write_lock:
                await context.write(message)

        await self._start().follow(first.hello, request_iterator, write)

    async def ListReplicas(  # noqa: N802
        self, request: fleet_pb2.ListReplicasRequest, context: Context
    ) -> AsyncIterator[fleet_pb2.ListReplicasResponse]:
        self._refuse_follower()
        last = None
        while True:
            answer = self._listing()
            if (shown := _without_times(answer)) != last:
                last = shown
                yield answer
            if not request.watch:
                return
            await (self._fleet.members.wait(LOOK_S) if self._fleet else asyncio.sleep(LOOK_S))

    def _listing(self) -> fleet_pb2.ListReplicasResponse:
        services = self._services
        active = services.registry.active
        own = fleet_pb2.Replica(
            name="primary",
            address=services.config.advertise,
            generation=active.generation,
            state=fleet_pb2.REPLICA_STATE_SERVING if active.heads and not services.registry.damage else fleet_pb2.REPLICA_STATE_BEHIND,
            error=self._fleet.unread() if self._fleet else "",
            primary=True,
        )
        followers = self._fleet.listing() if self._fleet else []
        return fleet_pb2.ListReplicasResponse(replicas=[own, *followers], history_id=active.history_id)

    def _refuse_follower(self) -> None:
        if self._services.following is not None:
            raise not_primary(self._services.following.primary)


def _without_times(answer: fleet_pb2.ListReplicasResponse) -> fleet_pb2.ListReplicasResponse:
    shown = fleet_pb2.ListReplicasResponse()
    shown.CopyFrom(answer)
    for replica in shown.replicas:
        replica.silent_seconds = 0.0
    return shown
