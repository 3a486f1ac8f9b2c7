"""Which heads' weights are in memory, under one budget. Knows digests and bytes; not how they get there, nor what is active.

A head that was let go may still be held by a running request: its bytes count until it is really gone. A base stays in memory for
as long as a LoRA head on it does; so do heads that are pinned, and those of the active set. Thread-safe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from polyhead.heads.format.errors import ResourceExhausted
from polyhead.server.engine.work.live import LiveHead, ServedHead

RETRY_S = 5.0  # when running requests are what stands in the way


@dataclass(frozen=True, slots=True)
class ResidentHead:
    """One file's weights in memory, as a listing shows them."""

    references: tuple[str, ...]  # "policy@3"; several versions may share a file
    digest: str
    num_bytes: int
    num_leases: int
    active: bool


@dataclass(frozen=True, slots=True)
class ResidentName:
    """What one head name has in memory."""

    name: str
    versions: tuple[int, ...]
    num_bytes: int  # of its files' weights, each once; a file that several names share counts for each


class Pin:
    """Digests of heads that are about to be used and are not yet held otherwise. They need not be in memory.

    What is added after the pin's end holds nothing: a worker that a cancelled call has left behind keeps no memory.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self.digests: frozenset[str] = frozenset()  # replaced as a whole, since other threads read it

    def add(self, digests: Iterable[str]) -> None:
        with self._lock:
            self.digests |= frozenset(digests)


class Residency:
    """Holds LiveHeads by digest and ServedHeads by version."""

    def __init__(
        self, budget: int, max_idle_per_name: int, leased: Callable[[], Mapping[str, int]], dropped: Callable[[str], None]
    ) -> None:
        self.budget = budget
        self.max_idle_per_name = max_idle_per_name  # versions that no set and no request uses
        self._leased = leased  # digest -> running requests
        self._dropped = dropped  # told when a digest's weights are let go
        self._lock = threading.RLock()
        self._live: dict[str, LiveHead] = {}
        self._served: dict[tuple[str, int], ServedHead] = {}
        self._used_at: dict[str, int] = {}  # digest -> tick; the smallest is evicted first
        self._ticks = itertools.count()
        self._released: dict[int, tuple[weakref.ref[object], int]] = {}  # id -> (module that was let go, bytes)
        self._num_reserved_bytes = 0  # for weights that are being built
        self._active: frozenset[str] = frozenset()
        self._pins: set[Pin] = set()

    @property
    def num_bytes(self) -> int:
        """Bytes of weights in memory: those being built and those let go but still held included."""
        with self._lock:
            known = {id(live.module) for live in self._live.values()}
            self._released = {key: released for key, released in self._released.items() if released[0]() is not None and key not in known}
            kept = sum(live.num_bytes for live in self._live.values())
            return kept + sum(size for _, size in self._released.values()) + self._num_reserved_bytes

    def served(self, name: str, version: int) -> ServedHead | None:
        """A version that is in memory; marks it as used. Never blocks."""
        head = self._served.get((name, version))
        if head is not None:
            self._used_at[head.live.digest] = next(self._ticks)
        return head

    def live(self, digest: str) -> LiveHead | None:
        return self._live.get(digest)

    @contextlib.contextmanager
    def pinning(self) -> Iterator[Pin]:
        """What is added to the pin stays in memory until the block ends, however it does."""
        pin = Pin(self._lock)
        with self._lock:
            self._pins.add(pin)
        try:
            yield pin
        finally:
            with self._lock:
                self._pins.discard(pin)

    def serve(self, digests: Iterable[str]) -> None:
        """The active set's heads stay in memory, in place of those of the one before."""
        with self._lock:
            self._active = frozenset(digests)

    @contextlib.contextmanager
    def room_for(self, num_bytes: int, pin: Pin) -> Iterator[None]:
        """Reserve memory before anything is allocated, for a caller who needs what `pin` has, too; idle heads make way.

        ResourceExhausted.
        """
        with self._lock:
            self._make_room(num_bytes, pin)
            self._num_reserved_bytes += num_bytes
        try:
            yield
        finally:
            with self._lock:
                self._num_reserved_bytes -= num_bytes

    def add(self, head: ServedHead) -> ServedHead:
        """Keep a head whose weights are loaded; the head as it is kept, on weights that were there before if there were any."""
        with self._lock:
            live = self._live.setdefault(head.live.digest, head.live)
            if live is not head.live:  # two loaded one file at once: all rows share the first copy, the other goes with its holders
                self.watch(head.live)
                head = dataclasses.replace(head, live=live)
            self._live.setdefault(live.weights.digest, live.weights)
            self._served[head.name, head.version] = head
            for used in (live, live.weights):
                self._used_at[used.digest] = next(self._ticks)
            return head

    def watch(self, live: LiveHead) -> None:
        """Count weights that are not kept for as long as a reference to them exists."""
        with self._lock:
            self._released[id(live.module)] = (weakref.ref(live.module), live.num_bytes)

    def trim(self) -> None:
        """Let the longest unused versions of each name go, down to the limit per name."""
        with self._lock:
            idle = self._idle()
            for name in {name for name, _ in self._served}:
                own = {head.live.digest for (other, _), head in self._served.items() if other == name}
                surplus = [digest for digest in idle if digest in own]
                for digest in surplus[: max(0, len(surplus) - self.max_idle_per_name)]:
                    if digest not in self._bases(self._live):
                        self._evict(digest)
                        idle.remove(digest)

    def forget(self, name: str, version: int) -> None:
        """A deleted version; its weights go unless another version shares them."""
        with self._lock:
            head = self._served.pop((name, version), None)
            is_shared = head is not None and any(other.live is head.live for other in self._served.values())
            if head is not None and not is_shared and head.live.digest not in self._bases(self._live):
                self._evict(head.live.digest)

    def listing(self, active: Collection[str]) -> list[ResidentHead]:
        """`active` are the digests of the active set."""
        leases = self._leased()
        with self._lock:
            return [
                ResidentHead(
                    references=tuple(sorted(head.reference for head in self._served.values() if head.live is live)),
                    digest=digest,
                    num_bytes=live.num_bytes,
                    num_leases=leases.get(digest, 0),
                    active=digest in active,
                )
                for digest, live in sorted(self._live.items())
            ]

    def names(self) -> list[ResidentName]:
        """By name: the versions in memory, and what their weights take."""
        with self._lock:
            names = sorted({name for name, _ in self._served})
            return [self._resident_name(name) for name in names]

    def _resident_name(self, name: str) -> ResidentName:
        own = {version: head.live for (other, version), head in self._served.items() if other == name}
        num_bytes = sum(live.num_bytes for live in set(own.values()))
        return ResidentName(name, tuple(sorted(own)), num_bytes)

    def _bases(self, digests: Iterable[str]) -> set[str]:
        """Digests of the bases that these need."""
        found = (self._live.get(digest) for digest in digests)
        return {live.base.digest for live in found if live is not None and live.base is not None}

    def _make_room(self, num_bytes: int, pin: Pin) -> None:
        idle = self._idle()
        if self._is_over(num_bytes, sum(self._live[digest].num_bytes for digest in idle)):
            self._refuse(num_bytes, pin)
        for digest in idle:
            if self._num_over(num_bytes) <= 0:
                return
            self._evict(digest)
        if self._is_over(num_bytes, 0):  # a released head is still referenced
            self._refuse(num_bytes, pin)

    def _is_over(self, num_bytes: int, num_idle_bytes: int) -> bool:
        """Whether so many bytes more are beyond the budget when idle heads are let go.

        Asked before a refusal, so released weights that only a reference cycle holds, as a failed build's traceback may, are freed first.
        """
        if self._num_over(num_bytes) > num_idle_bytes and self._released:
            gc.collect()
        return self._num_over(num_bytes) > num_idle_bytes

    def _num_over(self, num_bytes: int) -> int:
        """Bytes beyond the budget if so many were added."""
        return self.num_bytes + num_bytes - self.budget

    def _idle(self) -> list[str]:
        """Digests that nothing needs now, the longest unused first, each base behind the adapters on it."""
        needed = self._active.union(*(pin.digests for pin in self._pins), (digest for digest, count in self._leased().items() if count))
        needed |= self._bases(needed)
        return sorted(self._live.keys() - needed, key=self._last_used)

    def _last_used(self, digest: str) -> tuple[int, bool]:
        """A base is used whenever an adapter on it is; at the same tick it goes after the adapter."""
        on_it = [other for other, live in self._live.items() if live.base is not None and live.base.digest == digest]
        return max(self._used_at[each] for each in (digest, *on_it)), bool(on_it)

    def _evict(self, digest: str) -> None:
        live = self._live.pop(digest)
        self._used_at.pop(digest, None)
        self._served = {key: head for key, head in self._served.items() if head.live is not live}
        self.watch(live)
        self._dropped(digest)

    def _refuse(self, num_bytes: int, pin: Pin) -> None:
        kept = sum(live.num_bytes for digest, live in self._live.items() if digest in self._active | pin.digests)
        is_busy = kept + num_bytes <= self.budget  # it would fit once others let their versions go
        hint = "running requests hold other versions, try again later" if is_busy else "raise --memory-budget"
        raise ResourceExhausted(
            f"no memory for another head: {num_bytes} bytes needed, {self.num_bytes} of {self.budget} in use\nhint: {hint}",
            retry_after_s=RETRY_S if is_busy else None,
        )
