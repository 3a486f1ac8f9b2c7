"""Before an activation: every replica that must has loaded the versions, or nothing changes anywhere. After it: who serves it.

On the event loop; a round's length is bounded by its own time and by the silence of those that it asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from polyhead.heads.format.errors import FailedPrecondition, PolyheadError
from polyhead.server.fleet.members import SILENT_S, Member, Members
from polyhead.server.fleet.session import Order, Session
from polyhead.server.rpc.errors import ReplicaMissing
from polyhead.server.versions.consent import Require, Wish
from polyhead.v1 import fleet_pb2

LOOK_S = 0.25  # between two looks at who has fallen silent
SETTLE_S = 10.0  # at most, for replicas that have prepared it, to take up a new generation
ROLLBACK_SETTLE_S = 2.0  # where nobody was asked before
RETRY_S = 5.0


class Rounds:
    """One at a time."""

    def __init__(self, members: Members, sessions: Mapping[Member, Session], num_expected: int) -> None:
        self._members = members
        self._sessions = sessions
        self._num_expected = num_expected  # followers that the setting `replicas` promises
        self._one_round = asyncio.Lock()

    @asynccontextmanager
    async def prepared(self, heads: Mapping[str, int], wish: Wish) -> AsyncIterator[None]:
        """Those that are asked keep the versions in memory until the block ends. FailedPrecondition; ReplicaMissing."""
        if wish.require is Require.PRIMARY:
            yield
            return
        async with self._one_round:
            asked = self._asked(wish.require)
            try:
                await self._prepare(asked, heads, wish.seconds)
                yield
            finally:
                for member in asked:
                    self._order(member, Order(fleet_pb2.FollowResponse(abort=fleet_pb2.Abort())))

    def _asked(self, require: Require) -> list[Member]:
        """Not those that are still catching up: they serve nothing before they have taken up what is active by then."""
        members = self._members.listing()
        lost = [member for member in members if member.is_lost]
        if require is Require.ALL and lost:
            raise _refusal([f"{member.name} has been silent for {member.silent_s:.0f} s" for member in lost])
        connected = [member for member in members if not member.is_lost]
        if require is Require.ALL and len(connected) < self._num_expected:
            raise _refusal([f"{len(connected)} replicas are connected, of {self._num_expected} that the setting replicas names"])
        return [member for member in connected if member.has_caught_up]

    async def _prepare(self, asked: Collection[Member], heads: Mapping[str, int], seconds: float) -> None:
        task = fleet_pb2.Prepare(heads=heads, seconds=seconds + SETTLE_S)
        orders = {member: Order(fleet_pb2.FollowResponse(prepare=task), heads) for member in asked}
        for member, order in orders.items():
            self._order(member, order)
        end_at = time.monotonic() + seconds
        waiting = {member: order for member, order in orders.items() if not order.result.done()}
        while waiting and time.monotonic() < end_at and not any(member.is_lost for member in waiting):
            await asyncio.wait([order.result for order in waiting.values()], timeout=min(LOOK_S, end_at - time.monotonic()))
            waiting = {member: order for member, order in orders.items() if not order.result.done()}
        for order in waiting.values():
            order.is_dropped = True
        failed = [f"{member.name}: {error}" for member, order in orders.items() if order.result.done() and (error := order.result.result())]
        if failed:
            hint = "activate with require=PRIMARY to leave it behind, which then does not serve"
            raise FailedPrecondition(f"nothing was changed: a replica cannot load it: {'; '.join(failed)}\nhint: {hint}", field="require")
        if waiting:
            raise _refusal([_why(member, seconds) for member in waiting])

    def _order(self, member: Member, order: Order) -> None:
        session = self._sessions.get(member)
        if session is None:
            order.end("it went away")
        else:
            session.order(order)

    async def settled(self, generation: int, wish: Wish) -> tuple[str, ...]:
        """Replicas that do not serve it yet; those that will not for now are not waited for."""
        seconds = ROLLBACK_SETTLE_S if wish.require is Require.PRIMARY else min(SETTLE_S, wish.seconds)
        end_at = time.monotonic() + seconds
        while True:
            members = self._members.listing()
            behind = [member for member in members if member.generation < generation or member.is_lost]
            due = [member for member in behind if member.has_caught_up and not member.is_lost and not member.is_stuck]
            if not due or (remaining := end_at - time.monotonic()) <= 0:
                return tuple(member.name for member in behind)
            await self._members.wait(min(LOOK_S, remaining))


def _why(member: Member, seconds: float) -> str:
    what = f"has been silent for {member.silent_s:.0f} s" if member.is_lost else f"needs more than {seconds:g} s"
    return f"{member.name} {what}"


def _refusal(reasons: list[str]) -> PolyheadError:
    hint = f"a replica that says nothing is forgotten after a minute; require=CONNECTED waits for none that is silent for {SILENT_S:g} s"
    problem = f"nothing was changed: not every replica has loaded it: {'; '.join(reasons)}"
    return ReplicaMissing(f"{problem}\nhint: {hint}", retry_after_s=RETRY_S)
