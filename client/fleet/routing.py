"""Which replica answers which call, and which has the least to do. Knows addresses and numbers, no channel. Thread-safe."""

from __future__ import annotations

import contextlib
import enum
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polyhead.client.errors import FailedPrecondition, PolyheadError, Unavailable
from polyhead.client.results.records import Replica

__all__ = ["Place", "Replicas", "place_of", "weight_of"]

REFRESH_S = 2.0  # the list is asked for again after so long
DOWN_S = 2.0  # a replica that did not answer is left alone for so long
_ANYWHERE = frozenset(
    {"generation.Generate", "scoring.Score", "scoring.TokenizeRules", "trunk.Encode", "trunk.Tokenize", "trunk.Detokenize"}
)
_LOOKUPS = frozenset(
    {"heads.GetHead", "heads.ListHeads", "heads.ListGenerations", "scoring.ListConfigurations"}
    | {"trunk.GetTrunk", "trunk.GetStatus", "trunk.ListOodFits"}
)


class Place(enum.Enum):
    """Who answers a call."""

    ANYWHERE = "anywhere"  # it computes, and changes nothing: the replica with the least to do
    LOOKUP = "lookup"  # the primary, which knows the latest; while it is away, whoever serves
    PRIMARY = "primary"


class _Methods:
    """In place of a stub: gives a method's name."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __getattr__(self, method: str) -> str:
        return f"{self._service}.{method}"


class _Services:
    """In place of Stubs."""

    def __getattr__(self, service: str) -> _Methods:
        return _Methods(service)


def place_of(pick: Callable[[Any], Any]) -> Place:
    """Of the call that `pick` makes."""
    method = pick(_Services())
    return Place.ANYWHERE if method in _ANYWHERE else Place.LOOKUP if method in _LOOKUPS else Place.PRIMARY


def weight_of(request: Any) -> int:
    """How much a call adds to a replica's load: prompts, items or sequences."""
    for field in ("prompts", "items", "sequences"):
        if count := len(getattr(request, field, ())):
            return count
    return 1


@dataclass(eq=False, slots=True)
class _Known:
    load: int = 0  # prompts, items and sequences of calls that are open
    down_until: float = 0.0


class Replicas:
    """Addresses that serve, as far as is known: those that the caller gave, until a primary has answered."""

    def __init__(self, given: Sequence[str]) -> None:
        self._given = tuple(given)
        self._primary = self._given[0]
        self._known: dict[str, _Known] = {address: _Known() for address in self._given}
        self._serving = self._given
        self._asked_at = -REFRESH_S
        self._lock = threading.Lock()
        self._num_lent = 0
        self.is_known = False  # the list, as far as it can be had

    @property
    def primary(self) -> str:
        """As far as is known."""
        return self._primary

    @property
    def may_be_another(self) -> bool:
        """Whether the primary is one of several that the caller gave."""
        return len(self._given) > 1

    def primary_first(self) -> tuple[str, ...]:
        """All that serve; those that did not answer just now last."""
        with self._lock:
            found = (self._primary, *(each for each in self._serving if each != self._primary))
            return tuple(sorted(found, key=lambda each: self._known[each].down_until > time.monotonic()))

    def may_be_primary(self) -> tuple[str, ...]:
        """Whom to ask for the list: the last primary, then the others that the caller gave, of which one may have taken its place."""
        with self._lock:
            return (self._primary, *(each for each in self._given if each != self._primary))

    def is_due(self) -> bool:
        """Whether the list is old; if so, the caller is the one who asks for it."""
        with self._lock:
            is_old = time.monotonic() - self._asked_at >= REFRESH_S
            if is_old:
                self._asked_at = time.monotonic()
            return is_old

    def absent_primary(self, error: FailedPrecondition) -> PolyheadError:
        """In place of a follower's refusal, where the primary would be one of several addresses."""
        if not self.may_be_another:
            return error
        followed = error.metadata.get("primary", "")
        return Unavailable(f"the primary does not answer: {followed}\nhint: those of {', '.join(self._given)} that do answer follow it")

    def expire(self) -> None:
        """Ask for the list before the next call."""
        with self._lock:
            self._asked_at = -REFRESH_S

    def take(self, primary: str, listing: Sequence[Replica]) -> None:
        """What the primary says. A server that is older than this client says nothing: it is the only one."""
        serving = [primary if each.primary else each.address for each in listing if each.state == "serving"]
        with self._lock:
            self.is_known, self._primary = True, primary
            self._serving = tuple(address for address in serving if address) or (primary,)
            for address in (primary, *self._serving):
                self._known.setdefault(address, _Known())

    def addresses(self) -> tuple[str, ...]:
        with self._lock:
            return self._serving

    @contextlib.contextmanager
    def lent(self, weight: int, tried: Collection[str]) -> Iterator[str]:
        """The address with the least load, those in `tried` last, while the block runs."""
        with self._lock:
            address = self._least_loaded(tried)
            known = self._known[address]
            known.load += weight
        try:
            yield address
        finally:
            with self._lock:
                known.load -= weight

    def _least_loaded(self, tried: Collection[str]) -> str:
        self._num_lent += 1
        now, first = time.monotonic(), self._num_lent % len(self._serving)
        rotated = self._serving[first:] + self._serving[:first]  # of equals, another one each time
        return min(rotated, key=lambda each: (each in tried, self._known[each].down_until > now, self._known[each].load))

    def note_down(self, address: str) -> None:
        """It did not answer: others are asked first for a while."""
        with self._lock:
            self._known[address].down_until = time.monotonic() + DOWN_S

    def set_down(self, address: str) -> None:
        """One that is listed as serving did not answer: the list is asked for again, too."""
        self.note_down(address)
        self.expire()
