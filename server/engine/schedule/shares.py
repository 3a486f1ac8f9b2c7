"""Fair shares of a limit that callers hold together: a queue's places, its tokens, pushes, watches, bytes. Max-min fair among principals.

A principal that is alone may have everything. When all is taken, a principal above its fair share is refused until others have theirs, and
one below it still gets a place, out of a reserve beyond the total: what others hold already is never taken away.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping

from polyhead.heads.format.errors import ResourceExhausted

RESERVE = 0.25  # of the total, beyond it, for principals below their fair share


def fair_share(total: float, others: Iterable[float]) -> float:
    """The most that one principal may hold while the others keep what they hold, at most as much each.

    What small holdings leave is divided among the larger ones (water-filling).
    """
    held = sorted(others)
    for index, amount in enumerate(held):
        share = total / (len(held) - index + 1)
        if amount >= share:
            return share
        total -= amount
    return total


def has_room(held: Mapping[str, float], principal: str, amount: float, total: float, reserve: float = RESERVE) -> bool:
    """Whether `principal` may take `amount` more, beside what each principal holds already.

    Each may have one thing at least while the reserve lasts, however many principals there are.
    """
    taken = sum(held.values())
    if taken + amount <= total:
        return True
    own = held.get(principal, 0)
    share = fair_share(total, (each for name, each in held.items() if name != principal))
    return taken + amount <= total * (1 + reserve) and (own + amount <= share or own == 0)


class Shares:
    """How much of one thing each principal holds. May be called from any thread."""

    def __init__(self, what: str, total: float, *, reserve: float = RESERVE, hint: str = "", retry_after_s: float = 1.0) -> None:
        self._what = what  # in the plural, as the refusal names it: "pushes", "watches"
        self._total = total
        self._reserve = reserve
        self._hint = hint
        self._retry_after_s = retry_after_s
        self._held: dict[str, float] = {}
        self._lock = threading.Lock()

    def num_held(self, principal: str) -> float:
        """What one principal holds."""
        with self._lock:
            return self._held.get(principal, 0)

    def take(self, principal: str, amount: float = 1) -> None:
        """Hold `amount` more. ResourceExhausted, with a time to come back, if there is no room for this principal."""
        with self._lock:
            if not has_room(self._held, principal, amount, self._total, self._reserve):
                raise self._refusal(principal)
            self._held[principal] = self._held.get(principal, 0) + amount

    def give_back(self, principal: str, amount: float = 1) -> None:
        """Hold `amount` less."""
        with self._lock:
            left = self._held.get(principal, 0) - amount
            assert left >= 0, f"more {self._what} were given back than taken"
            if left:
                self._held[principal] = left
            else:
                self._held.pop(principal, None)

    @contextlib.contextmanager
    def held(self, principal: str, amount: float = 1) -> Iterator[None]:
        """Hold `amount` for as long as the block runs. ResourceExhausted as for `take`."""
        self.take(principal, amount)
        try:
            yield
        finally:
            self.give_back(principal, amount)

    def _refusal(self, principal: str) -> ResourceExhausted:
        """Names no other principal."""
        own, taken = self._held.get(principal, 0), sum(self._held.values())
        hint = f"\nhint: {self._hint}" if self._hint else ""
        return ResourceExhausted(
            f"too many {self._what}: {own:g} of yours, {taken:g} in all, room for {self._total:g}{hint}", retry_after_s=self._retry_after_s
        )
