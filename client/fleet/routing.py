"""Which calls any replica may answer, and which replica has the least to do. Knows addresses and numbers, no channel. Thread-safe."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polyhead.client.results.records import Replica

__all__ = ["Replicas", "is_anywhere", "weight_of"]

REFRESH_S = 2.0  # the list is asked for again after so long
DOWN_S = 2.0  # a replica that did not answer is left alone for so long
ANYWHERE = frozenset(
    {"generation.Generate", "scoring.Score", "scoring.TokenizeRules", "trunk.Encode", "trunk.Tokenize", "trunk.Detokenize"}
)


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


def is_anywhere(pick: Callable[[Any], Any]) -> bool:
    """Whether any replica may answer the call that `pick` makes: it computes, and changes nothing."""
    return pick(_Services()) in ANYWHERE


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
    """Addresses that serve, as far as is known. The primary is always one of them, if no other answers."""

    def __init__(self, primary: str) -> None:
        self._primary = primary
        self._known: dict[str, _Known] = {primary: _Known()}
        self._serving: tuple[str, ...] = (primary,)
        self._asked_at = -REFRESH_S
        self._lock = threading.Lock()
        self._turn = 0
        self.is_known = False  # the list, as far as it can be had

    def is_due(self) -> bool:
        """Whether the list is old; if so, the caller is the one who asks for it."""
        with self._lock:
            is_old = time.monotonic() - self._asked_at >= REFRESH_S
            if is_old:
                self._asked_at = time.monotonic()
            return is_old

    def take(self, listing: Sequence[Replica]) -> None:
        """What the primary says. A server that is older than this client says nothing: it is the only one."""
        serving = [self._primary if each.primary else each.address for each in listing if each.state == "serving"]
        with self._lock:
            self.is_known = True
            self._serving = tuple(address for address in serving if address) or (self._primary,)
            for address in self._serving:
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
        now, self._turn = time.monotonic(), self._turn + 1
        turned = self._serving[self._turn % len(self._serving) :] + self._serving[: self._turn % len(self._serving)]  # equals take turns
        return min(turned, key=lambda each: (each in tried, self._known[each].down_until > now, self._known[each].load))

    def set_down(self, address: str) -> None:
        """It did not answer."""
        with self._lock:
            self._known[address].down_until = time.monotonic() + DOWN_S
            self._asked_at = -REFRESH_S
