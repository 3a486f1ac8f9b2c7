"""Whom a change of the active set waits for before its commit: nobody, or the replicas of a fleet (server/fleet). Knows neither."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

PREPARE_S = 60.0  # that replicas get to load, where a caller says nothing


class Require(enum.Enum):
    """Which replicas must have loaded the versions before they become active."""

    ALL = "all"
    CONNECTED = "connected"
    PRIMARY = "primary"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller of a change says of the replicas."""

    require: Require = Require.ALL
    seconds: float = PREPARE_S


@dataclass(frozen=True, slots=True)
class FollowersReport:
    """How a primary's followers stand, for the metrics."""

    num_by_state: Mapping[str, int]  # "syncing", "serving", "behind", "lost"
    most_behind: int = 0  # generations that the last one of those that are connected still lacks


NO_FOLLOWERS = FollowersReport(dict.fromkeys(("syncing", "serving", "behind", "lost"), 0))


Note = Callable[[str], None]  # what a change is doing, for the log


class Consent(Protocol):
    """Asked before the commit, and waited for after it."""

    def may_wait(self, wish: Wish) -> bool:
        """Whether `asking` may wait for replicas. Does not block."""

    def asking(self, heads: Mapping[str, int], wish: Wish, note: Note) -> AbstractContextManager[None]:
        """Enter: those that are asked have loaded these versions, and keep them in memory until the block ends. Blocks.

        `note` is told how many are asked. Unavailable if one does not answer in time, FailedPrecondition if one cannot: then nothing has
        changed anywhere.
        """

    async def settled(self, generation: int, wish: Wish) -> tuple[str, ...]:
        """Names of replicas that do not serve this generation, or a later one, after some time to take it up."""

    def report(self) -> FollowersReport:
        """From any thread."""


class Alone:
    """A server that nobody follows."""

    def may_wait(self, wish: Wish) -> bool:
        return False

    def asking(self, heads: Mapping[str, int], wish: Wish, note: Note) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def settled(self, generation: int, wish: Wish) -> tuple[str, ...]:
        return ()

    def report(self) -> FollowersReport:
        return NO_FOLLOWERS
