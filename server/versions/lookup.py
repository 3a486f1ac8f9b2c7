"""What is there: heads of the active set and stored versions, found by "policy" or "policy@7". Changes nothing; may load a version."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from polyhead.heads.format.errors import NotFound, PolyheadError, Unavailable
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.format.manifest import check_name, parse_reference
from polyhead.heads.store.store import HeadStore, VersionRecord
from polyhead.server.engine.work.live import ActiveSet, ServedHead
from polyhead.server.versions.head_cache import HeadCache
from polyhead.server.versions.residency import Pin, ResidentHead

MAX_LISTED = 16  # names in an error


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version as a listing shows it."""

    record: VersionRecord
    is_active: bool
    is_resident: bool


class HeadLookup:
    """The reading half of the registry. Methods block unless they say otherwise; call them from a worker thread."""

    def __init__(self, store: HeadStore, cache: HeadCache) -> None:
        self.store = store
        self.residency = cache.residency
        self._cache = cache
        self._active = ActiveSet(generation=0)

    @property
    def active(self) -> ActiveSet:
        """What new requests use. Does not block."""
        return self._active

    @property
    def damage(self) -> str:
        """What keeps the active set from being served, or from coming back after a restart, and how to repair it; empty if all is well.

        Holds a path.
        """
        if found := self.store.damage:
            return f"{found.what}\nrepair: stop the server, then run: {found.repair}"
        return f"{lost.what}\nrepair: {lost.repair}" if (lost := self.store.restart_damage) else ""

    @property
    def problems(self) -> list[str]:
        """What else in the store is damaged, each with its repair; nothing of it keeps the active set from being served. Holds paths."""
        return [f"{found.what}; repair: {found.repair}" for found in self.store.other_damage]

    def find(self, reference: str, active: ActiveSet, field: str) -> ServedHead | None:
        """A head that is in memory already: "policy" from `active`, "policy@7" wherever it is. None: `resolve` has to load it.

        Does not block. InvalidArgument for a malformed reference; NotFound for a name that is not active.
        """
        name, version = parse_reference(reference, field)
        served = active.heads.get(name)
        if served is not None and version in (0, served.version):
            return served
        if not active.heads:
            raise Unavailable("no heads are active: the server is starting, or its active set is damaged", retry_after_s=5.0)
        if version == 0:
            raise _unknown_name(name, active, field)
        return self.residency.served(name, version)

    @contextlib.contextmanager
    def resolving(self) -> Iterator[Callable[[str, str], ServedHead]]:
        """Look-ups by (reference, field) for one request, all in the set that is active now and each reference once.

        What they find stays in memory until the block ends.
        """
        active, found = self._active, dict[str, ServedHead]()
        with self.residency.pinning() as pin:

            def look_up(reference: str, field: str) -> ServedHead:
                if reference not in found:
                    found[reference] = self.resolve(reference, active, field, pin)
                return found[reference]

            try:
                yield look_up
            finally:
                found.clear()  # a look-up that outlives the block then keeps no weights in memory

    def resolve(self, reference: str, active: ActiveSet, field: str, pin: Pin) -> ServedHead:
        """As `find`, and a version that is not in memory is loaded; it stays while `pin` lasts.

        NotFound, or ResourceExhausted if it does not fit.
        """
        name, version = parse_reference(reference, field)
        found = self.find(reference, active, field)
        if found is not None:
            pin.add({found.live.digest})
            if not version or self.residency.live(found.live.digest) is found.live:  # a version may have been let go just before
                return found
        try:
            record = self.store.get(name, version)
        except NotFound as error:
            raise NotFound(error.message, field=field, metadata={"name": reference}) from None
        served = self._cache.load([record], pin)[name]
        self.residency.trim()
        return served

    def view(self, record: VersionRecord) -> VersionView:
        served = self._active.heads.get(record.name)
        return VersionView(
            record,
            is_active=served is not None and served.version == record.version,
            is_resident=self.residency.live(record.digest) is not None,
        )

    def get(self, reference: str, field: str) -> VersionView:
        """The record of "policy" (the active version) or "policy@7"."""
        name, version = parse_reference(reference, field)
        served = self._active.heads.get(name)
        if not version and served is None:
            raise _unknown_name(name, self._active, field)
        try:
            return self.view(self.store.get(name, version or (served.version if served else 0)))
        except NotFound as error:
            raise NotFound(error.message, field=field, metadata={"name": reference}) from None

    def list_versions(self, name: str = "") -> list[VersionView]:
        """By name, newest version first; an unknown name has none."""
        if name:
            check_name(name, "name")
        names = [known for known in self.store.names() if name in ("", known)]
        return [self.view(record) for known in names for record in reversed(self.store.versions(known))]

    def is_resident(self, heads: Mapping[str, int]) -> bool:
        """Whether a change to these versions has nothing to load. Does not block."""
        return all(self.residency.served(name, version) is not None for name, version in heads.items())

    def rollback_heads(self, to_generation: int | None) -> Mapping[str, int]:
        """What a rollback would make active. Empty if there is nothing to go back to: the rollback itself says why."""
        with contextlib.suppress(PolyheadError):
            current = self.store.current
            number = to_generation if to_generation is not None else (current.parent if current else None)
            return self.store.generation(number).heads if number else {}
        return {}

    def num_head_bytes(self, output: OutputKind) -> int:
        """What a head with this output takes in memory."""
        return self._cache.loader.num_bytes(output)

    def resident(self) -> list[ResidentHead]:
        return self.residency.listing(digests(self._active))


def _unknown_name(name: str, active: ActiveSet, field: str) -> NotFound:
    """An error that lists what there is: most unknown names are misspelt."""
    known = ", ".join(sorted(active.heads)[:MAX_LISTED]) + (" and others" if len(active.heads) > MAX_LISTED else "")
    return NotFound(f"no active head of this name: {name!r}\nhint: active are {known or 'none'}", field=field, metadata={"name": name})


def digests(active: ActiveSet) -> set[str]:
    return {head.live.digest for head in active.heads.values()}
