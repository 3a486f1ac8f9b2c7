"""The primary's side: a follower's call is checked and becomes a session, activations ask the fleet, and clients learn who serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.server.fleet.catalogue import Catalogue, Held, configuration_sha256
from polyhead.server.fleet.members import Member, Members, State
from polyhead.server.fleet.rounds import Rounds
from polyhead.server.fleet.session import Session, Write
from polyhead.server.process.services import Services
from polyhead.server.rpc.errors import ReplicaMissing
from polyhead.server.versions.consent import FollowersReport, Note, Require, Wish
from polyhead.v1 import fleet_pb2

MAX_FOLLOWERS = 256
MARGIN_S = 30.0  # a round is over long before: the thread that waits for it is never left alone
_STATES = {
    State.SYNCING: fleet_pb2.REPLICA_STATE_SYNCING,
    State.SERVING: fleet_pb2.REPLICA_STATE_SERVING,
    State.BEHIND: fleet_pb2.REPLICA_STATE_BEHIND,
    State.LOST: fleet_pb2.REPLICA_STATE_LOST,
}

log = logging.getLogger(__name__)


class Fleet:
    """A primary with its followers: the `Consent` of its registry. Made on the event loop that serves."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._loop = asyncio.get_running_loop()
        self.members = Members()
        self._sessions: dict[Member, Session] = {}
        self._catalogue = Catalogue(services.store, services.ood.store, services.library.store)
        self._rounds = Rounds(self.members, self._sessions, services.config.replicas)
        services.store.files.on_change = self._wake_from_any_thread
        services.registry.consent = self

    def _wake_from_any_thread(self) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended: so has the server
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        """A file of the store has changed: there may be tasks."""
        for session in self._sessions.values():
            session.wake()
        self.members.changed()

    # ---- a follower's call

    async def follow(self, hello: fleet_pb2.Hello, requests: AsyncIterator[fleet_pb2.FollowRequest], write: Write) -> None:
        """Until it ends. FailedPrecondition if it may not follow."""
        await self._services.workers.run_control(self._check, hello)
        if len(self._sessions) >= MAX_FOLLOWERS:
            raise FailedPrecondition(f"{MAX_FOLLOWERS} followers are connected already")
        member = self.members.join(hello.name, hello.address, hello.generation, has_caught_up=hello.serving)
        session = self._sessions[member] = Session(member, Held.of(hello), self._catalogue, self.members, self._services.workers)
        log.info("%s follows, at %s, from generation %d", member.name, member.address, member.generation)
        try:
            await session.run(requests, write)
        finally:
            del self._sessions[member]
            self.members.lose(member)
            log.info("%s follows no more", member.name)

    def _check(self, hello: fleet_pb2.Hello) -> None:
        """The same trunk, texts and configurations, and a past that is part of ours."""
        services = self._services
        if not hello.name or len(hello.name) > 128 or not hello.name.isprintable():
            raise InvalidArgument("a follower's name has 1 to 128 printable characters", field="hello.name")
        ours = {
            "trunk_id": services.trunk_id,
            "precision": services.precision,
            "tokenizer_sha256": services.tokenizer.sha256,
            "configuration_sha256": configuration_sha256(services.library),
        }
        for field, value in ours.items():
            if (theirs := getattr(hello, field)) != value:
                hint = "start both from one model, with one split, precision, and the same files of rules, formats and recipes"
                problem = f"the follower's {field} is another one: {theirs[:12]}, not {value[:12]}"
                raise FailedPrecondition(f"{problem}\nhint: {hint}", field=field)
        if hello.generation and services.store.history_id(hello.generation) != hello.history_id:
            hint = "stop it, move its store folder away and start it again: it copies the primary's"
            problem = f"the follower's generation {hello.generation} is not in the primary's history"
            raise FailedPrecondition(f"{problem}\nhint: {hint}; or start it without --follow, to be the primary", field="generation")

    # ---- what activations ask

    def may_wait(self, wish: Wish) -> bool:
        return wish.require is not Require.PRIMARY

    @contextlib.contextmanager
    def asking(self, heads: Mapping[str, int], wish: Wish, note: Note) -> Iterator[None]:
        """On a thread that no follower's task needs; the round itself runs on the event loop."""
        if self.may_wait(wish):
            note(f"waiting for {len(self._sessions)} followers to load it")
        round_: AbstractAsyncContextManager[None] = self._rounds.prepared(heads, wish)
        entering = asyncio.run_coroutine_threadsafe(round_.__aenter__(), self._loop)
        try:
            entering.result(2 * wish.seconds + MARGIN_S)
        except TimeoutError:
            entering.cancel()
            raise ReplicaMissing("nothing was changed: another change waits for the replicas", retry_after_s=MARGIN_S) from None
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(round_.__aexit__(None, None, None), self._loop).result(MARGIN_S)

    async def settled(self, generation: int, wish: Wish) -> tuple[str, ...]:
        self.members.changed()  # whoever lists the replicas: this server has taken it up
        return await self._rounds.settled(generation, wish)

    # ---- who serves

    def report(self) -> FollowersReport:
        return self.members.report(self._services.registry.active.generation)

    def unread(self) -> str:
        """What no follower gets, since it cannot be read here; empty: nothing."""
        return next((session.unread for session in self._sessions.values() if session.unread), "")

    def listing(self) -> list[fleet_pb2.Replica]:
        """Followers, by name."""
        generation = self._services.registry.active.generation
        return [
            fleet_pb2.Replica(
                name=member.name,
                address=member.address,
                generation=member.generation,
                state=_STATES[member.state(generation)],
                error=member.error,
                silent_seconds=member.silent_s,
            )
            for member in self.members.listing()
        ]
