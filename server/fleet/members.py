"""Who follows this primary, and how each stands: syncing, serving, behind, lost. On the event loop alone; knows no stream and no store."""

from __future__ import annotations

import asyncio
import collections
import enum
import time
from dataclasses import dataclass, field

from polyhead.server.versions.consent import NO_FOLLOWERS, FollowersReport

SILENT_S = 5.0  # a follower says something each second
LOST_S = 60.0  # after which one that is lost is forgotten: nobody waits for it any more


class State(enum.Enum):
    """Of a replica; the contract's ReplicaState."""

    SYNCING = "syncing"
    SERVING = "serving"
    BEHIND = "behind"
    LOST = "lost"


@dataclass(eq=False, slots=True)
class Member:
    """One follower, from its first word until it leaves or is forgotten."""

    name: str
    address: str
    generation: int = 0
    has_caught_up: bool = False  # has caught up since its start
    error: str = ""  # of a task that it could not do
    is_stuck: bool = False  # what it could not take up is a head or a generation
    heard_at: float = field(default_factory=time.monotonic)
    is_connected: bool = True

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.heard_at

    @property
    def is_lost(self) -> bool:
        return not self.is_connected or self.silent_s > SILENT_S

    def state(self, generation: int) -> State:
        """Beside the primary's generation."""
        if self.is_lost:
            return State.LOST
        if not self.has_caught_up:
            return State.SYNCING
        return State.SERVING if self.generation == generation and not self.error else State.BEHIND


class Members:
    """By name. Silence makes a member lost without any event: whoever waits for one looks again after a while."""

    def __init__(self, lost_s: float = LOST_S) -> None:
        self._members: dict[str, Member] = {}
        self._lost_s = lost_s
        self._changed = asyncio.Event()

    def join(self, name: str, address: str, generation: int, *, has_caught_up: bool) -> Member:
        """A new stream of this name takes the place of an earlier one."""
        member = self._members[name] = Member(name, address, generation, has_caught_up)
        self.changed()
        return member

    def is_current(self, member: Member) -> bool:
        """Whether no later stream has taken its place, and nobody has forgotten it."""
        self._forget()
        return self._members.get(member.name) is member

    def lose(self, member: Member) -> None:
        """Its stream has ended without a word."""
        member.is_connected = False
        self.changed()

    def leave(self, member: Member) -> None:
        """It said that it goes."""
        if self._members.get(member.name) is member:
            del self._members[member.name]
        self.changed()

    def listing(self) -> list[Member]:
        """By name."""
        self._forget()
        return sorted(self._members.values(), key=lambda member: member.name)

    def report(self, generation: int) -> FollowersReport:
        """Beside the primary's generation. From any thread."""
        members = [member for member in [*self._members.values()] if not member.is_lost or member.silent_s <= self._lost_s]
        states = collections.Counter(member.state(generation).value for member in members)
        lags = [generation - member.generation for member in members if not member.is_lost]
        return FollowersReport({**NO_FOLLOWERS.num_by_state, **states}, max([0, *lags]))

    def changed(self) -> None:
        """Wake all who wait."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Until something changes, or so long."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    def _forget(self) -> None:
        for member in [each for each in self._members.values() if each.is_lost]:
            if member.silent_s > self._lost_s:
                del self._members[member.name]
