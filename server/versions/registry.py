"""The active set: the only place that turns stored versions into heads that serve. Knows nothing of the wire or of requests.

One lock makes activations serial. Everything that can fail comes before the store's commit; after it, the process either flips
the engine's pointer or ends, and the restart decides.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from polyhead.heads.format.errors import (
    AlreadyExists,
    Conflict,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PolyheadError,
    ResourceExhausted,
    Unavailable,
)
from polyhead.heads.format.kinds import DEFAULT_HEAD, OutputKind
from polyhead.heads.format.manifest import check_name, parse_reference
from polyhead.heads.store import failpoints
from polyhead.heads.store.osio import FULL_HINT
from polyhead.heads.store.store import CommitUncertain, GenerationRecord, HeadStore, VersionRecord
from polyhead.server.engine.work.live import ActiveSet, ServedHead
from polyhead.server.engine.work.reports import SwapReport
from polyhead.server.host.memory import return_freed_pages
from polyhead.server.versions.changes import Change, Changes
from polyhead.server.versions.engine_port import EnginePort
from polyhead.server.versions.first_heads import add_first_versions
from polyhead.server.versions.head_cache import HeadCache
from polyhead.server.versions.manifests import ServedTrunk
from polyhead.server.versions.residency import Pin, ResidentHead
from polyhead.server.versions.watch import GenerationFeed

EXIT_AFTER_COMMIT = 70  # EX_SOFTWARE: the set is committed, but this process cannot serve it
MAX_LISTED = 16  # names in an error
FLIP_TIMEOUT_S = 300.0  # an engine that makes no step for so long is dead

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Activation:
    """What a change of the active set did; without a report if it was the repetition of an earlier one."""

    record: GenerationRecord
    report: SwapReport | None


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version as a listing shows it."""

    record: VersionRecord
    is_active: bool
    is_resident: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be active for a change to be made."""

    generation: int | None = None  # None: any
    versions: Mapping[str, int] = field(default_factory=dict)  # of these names; 0: none of the name. Other names may be any


ANY = Expected()


class Registry:
    """Methods block unless they say otherwise; call them from a worker thread."""

    def __init__(
        self,
        store: HeadStore,
        trunk: ServedTrunk,
        cache: HeadCache,
        engine: EnginePort,
        *,
        keep_versions: int = 10,
        on_swap: Callable[[Iterable[str], str, float], None] = lambda heads, outcome, seconds: None,
    ) -> None:
        self.store = store
        self.trunk = trunk
        self.residency = cache.residency
        self.feed = GenerationFeed()
        self.changes = Changes()
        self._cache = cache
        self._engine = engine
        self._keep_versions = keep_versions
        self._on_swap = on_swap  # (head names, "ok" or "failed", seconds)
        self._active = ActiveSet(generation=0)
        self._mutation = threading.Lock()

    # ---- what is there (nothing here waits for a load)

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
        return f"{lost.what}\nrepair: {lost.repair}" if (lost := self.store.lost) else ""

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
                found.clear()  # whoever still has the look-up holds no weights by it

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
        return self.residency.listing(_digests(self._active))

    # ---- the start

    def bootstrap(self, policy: Mapping[str, Tensor]) -> GenerationRecord:
        """Fill an empty store with the five heads that any model gives, and make them generation 1."""
        heads = add_first_versions(self.store, self.trunk, policy)
        return self.activate(heads, request_id="bootstrap", note="made from the model's own layers").record

    def restore(self) -> bool:
        """Load the stored active set at the start: digests, numbers and a canary forward pass. False if there is none yet.

        DataLoss if the set is damaged: `damage` then says how to repair it, and nothing older is served in its place.
        """
        if (damage := self.store.verify_active()) is not None:
            raise DataLoss(damage.what)
        record = self.store.current
        if record is None:
            return False
        with self.residency.pinning() as pin:
            self._flip(record, self._cache.load([self.store.get(*head) for head in record.heads.items()], pin))
        return True

    # ---- changes of the active set

    def activate(
        self,
        heads: Mapping[str, int],
        *,
        deactivate: Collection[str] = (),
        expected: Expected = ANY,
        request_id: str = "",
        request_digest: str = "",
        note: str = "",
    ) -> Activation:
        """Make these versions active and let the names in `deactivate` go; the other names stay as they are.

        A repeated request id gets the first answer.
        """
        if not heads and not deactivate:
            raise InvalidArgument("an activation needs at least one head", field="heads")
        names = [*(f"{name[:64]}@{version}" for name, version in heads.items()), *(f"without {name[:64]}" for name in deactivate)]
        with self._changing(f"activation of {', '.join(names)}") as (change, pin):
            if first := self._answered(request_id, request_digest, heads):
                return Activation(first, None)
            self._load_ahead(heads, expected, change, pin)
            with self._mutation:
                return self._activate(heads, deactivate, expected, request_id, request_digest, note, change, pin)

    def _activate(
        self,
        heads: Mapping[str, int],
        deactivate: Collection[str],
        expected: Expected,
        request_id: str,
        request_digest: str,
        note: str,
        change: Change,
        pin: Pin,
    ) -> Activation:
        if first := self._answered(request_id, request_digest, heads):
            return Activation(first, None)
        current = self.store.current
        before = current.heads if current else {}
        self._check_leaving(deactivate, heads, before)
        merged = {name: version for name, version in {**before, **heads}.items() if name not in deactivate}
        return self._change(
            merged,
            current.number if current else None,
            expected,
            request_id=request_id,
            request_digest=request_digest,
            note=note,
            changed={*heads, *deactivate},
            change=change,
            pin=pin,
        )

    def rollback(
        self,
        to_generation: int | None = None,
        *,
        expected: Expected = ANY,
        request_id: str = "",
        request_digest: str = "",
    ) -> Activation:
        """A new generation equal to an earlier one, by default the active one's parent. Rolling back twice goes back twice."""
        with self._changing(f"rollback to generation {to_generation}" if to_generation else "rollback") as (change, pin):
            if first := self._answered(request_id, request_digest, {}):
                return Activation(first, None)
            if self.store.damage is None and (heads := self.rollback_heads(to_generation)):
                self._load_ahead(heads, expected, change, pin)
            with self._mutation:
                return self._rollback(to_generation, expected, request_id, request_digest, change, pin)

    def _rollback(
        self,
        to_generation: int | None,
        expected: Expected,
        request_id: str,
        request_digest: str,
        change: Change,
        pin: Pin,
    ) -> Activation:
        if first := self._answered(request_id, request_digest, {}):
            return Activation(first, None)
        if self.store.damage is not None:
            return self._repair(to_generation, request_id, request_digest, change, pin)
        current = self.store.current
        target_number = to_generation if to_generation is not None else (current.parent if current else None)
        if target_number is None:
            raise FailedPrecondition("the active generation is the first one: there is nothing to go back to")
        target = self._generation(target_number, "to_generation")
        note = f"rollback to generation {target.number}"
        return self._change(
            target.heads,
            target.parent,
            expected,
            request_id=request_id,
            request_digest=request_digest,
            note=note,
            changed=target.heads,
            change=change,
            pin=pin,
        )

    def label(
        self, reference: str, *, add: Collection[str], remove: Collection[str], request_id: str = "", request_digest: str = ""
    ) -> VersionRecord:
        """Change the labels of "policy" (the active version) or "policy@7". A repeated request id changes nothing again."""
        if not add and not remove:
            raise InvalidArgument("name labels to add or to remove", field="add")
        if both := set(add) & set(remove):
            raise InvalidArgument(f"a label is to be added and removed: {min(both)!r}", field="remove")
        self.store.check_request(request_id, request_digest)
        record = self.get(reference, "head").record
        return self.store.label(record.name, record.version, add=add, remove=remove, request_id=request_id, request_digest=request_digest)

    def delete(self, reference: str, field: str) -> None:
        """Forget a version that is neither active, nor next in a rollback, nor labelled."""
        name, version = parse_reference(reference, field)
        if version == 0:
            raise InvalidArgument(f"name the version to delete, as in {name}@1: {reference!r}", field=field)
        try:
            self.store.delete_version(name, version)
        except NotFound as error:
            raise NotFound(error.message, field=field, metadata={"name": reference}) from None
        self.residency.forget(name, version)

    def check_disk(self, num_bytes: int, field: str) -> None:
        """Before a push of so many bytes: what may be collected makes way for it. ResourceExhausted if it cannot fit all the same."""
        if self.store.disk_space()[0] >= num_bytes:
            return
        self.collect()
        free, _ = self.store.disk_space()
        if free < num_bytes:
            problem = f"the store's disk has no room for this push: {num_bytes} bytes needed, {free} free"
            raise ResourceExhausted(f"{problem}\nhint: {FULL_HINT}", field=field)

    def collect(self, also_keep: Collection[tuple[str, int]] = ()) -> list[str]:
        """Delete what `keep_versions` no longer keeps, and let idle weights go; what was deleted. After each push and activation."""
        deleted = self.store.collect(self._keep_versions, also_keep)
        with contextlib.suppress(ResourceExhausted):  # a full disk: the history is packed another time
            self.store.compact()
        for record in deleted:
            self.residency.forget(record.name, record.version)
        self.residency.trim()
        return_freed_pages()
        return [f"{record.name}@{record.version}" for record in deleted]

    @contextlib.contextmanager
    def _changing(self, what: str) -> Iterator[tuple[Change, Pin]]:
        """What the change loads stays in memory until it is done."""
        with self.changes.begin(what) as change, self.residency.pinning() as pin:
            yield change, pin

    def _load_ahead(self, heads: Mapping[str, int], expected: Expected, change: Change, pin: Pin) -> None:
        """Before the change has its turn: one whose heads are in memory, an emergency rollback above all, waits for no load."""
        try:
            self._check_expected(expected)
            self._cache.load([self._version(*head) for head in heads.items()], pin, change.note)
            self.store.verify(heads)
        except BaseException:
            self._on_swap(heads, "failed", change.seconds)
            raise

    def _change(
        self,
        heads: Mapping[str, int],
        parent: int | None,
        expected: Expected,
        *,
        request_id: str,
        request_digest: str,
        note: str,
        changed: Collection[str],
        change: Change,
        pin: Pin,
    ) -> Activation:
        try:
            self._check_expected(expected)
            loaded = self._cache.load([self._version(*head) for head in heads.items()], pin, change.note)
            self.store.verify(heads)
            change.note("writing it down")
            record = self._commit(
                heads,
                request_id=request_id,
                request_digest=request_digest,
                expected_generation=expected.generation,
                parent=parent,
                note=note,
            )
        except CommitUncertain as error:
            self._end_process(error)
            raise
        except BaseException:
            self._on_swap(changed, "failed", change.seconds)
            raise
        change.note(f"generation {record.number} waits for the end of the engine's step")
        report = self._flip(record, loaded)
        change.note(f"generation {record.number} is active")
        self._on_swap(changed, "ok", change.seconds)
        self.residency.trim()
        return Activation(record, report)

    def _commit(self, heads: Mapping[str, int], **fields: Any) -> GenerationRecord:
        """On a full disk what may be collected makes way, and the commit is tried again."""
        try:
            return self.store.commit_generation(heads, **fields)
        except ResourceExhausted:
            if not self.collect(also_keep=set(heads.items())):
                raise
            return self.store.commit_generation(heads, **fields)

    def _repair(self, to_generation: int | None, request_id: str, request_digest: str, change: Change, pin: Pin) -> Activation:
        """The way out of a damaged active set while the server runs: an intact generation that the caller names."""
        if not to_generation:
            raise FailedPrecondition("the active set is damaged: name the generation to go back to", field="to_generation")
        target = self._generation(to_generation, "to_generation")
        loaded = self._cache.load([self._version(*head) for head in target.heads.items()], pin, change.note)
        try:
            record = self.store.repair_to(to_generation, request_id=request_id, request_digest=request_digest)
        except CommitUncertain as error:
            self._end_process(error)
            raise
        return Activation(record, self._flip(record, loaded))

    def _flip(self, record: GenerationRecord, heads: Mapping[str, ServedHead]) -> SwapReport:
        """Past the commit point: the engine serves the new set, or the process ends."""
        try:
            failpoints.hit("before_flip")
            active = ActiveSet(record.number, dict(heads))
            report = self._engine.activate(active).result(FLIP_TIMEOUT_S)
            self.residency.serve(_digests(active))
            self._active = active
            self.feed.announce(record.number)
            failpoints.hit("before_ack")
            return report
        except BaseException as error:
            self._end_process(error)
            raise

    def _end_process(self, error: BaseException) -> None:
        log.critical("an activation failed after its commit point; the process ends and the restart decides", exc_info=error)
        logging.shutdown()
        os._exit(EXIT_AFTER_COMMIT)

    # ---- look-ups that name the request's own field

    def _version(self, name: str, version: int) -> VersionRecord:
        field = f"heads[{name[:64]}]"
        check_name(name, field)
        try:
            return self.store.get(name, version)
        except NotFound as error:
            raise NotFound(error.message, field=field, metadata={"name": f"{name}@{version}"}) from None

    def _generation(self, number: int, field: str) -> GenerationRecord:
        try:
            return self.store.generation(number)
        except NotFound as error:  # never there, or no longer kept
            raise NotFound(error.message, field=field, metadata={"name": str(number)}) from None

    def _check_leaving(self, leaving: Collection[str], heads: Mapping[str, int], before: Mapping[str, int]) -> None:
        if DEFAULT_HEAD in leaving:
            problem = f"{DEFAULT_HEAD} cannot leave the active set: requests that name no head run on it"
            raise InvalidArgument(f"{problem}\nhint: activate another version of it", field="deactivate")
        for name in leaving:
            if name in heads:
                raise InvalidArgument(f"the head is to be activated and deactivated: {name!r}", field="deactivate")
            if name not in before:
                raise NotFound(f"no active head of this name: {name!r}", field="deactivate", metadata={"name": name})

    def _check_expected(self, expected: Expected) -> None:
        """Asked first, which spares the work, and again when it is the change's turn."""
        current = self.store.current
        number, heads = (current.number, current.heads) if current else (0, {})
        if expected.generation is not None and expected.generation != number:
            raise Conflict(
                f"the active set has moved on: generation {number}, not {expected.generation}",
                field="expected_generation",
                metadata={"current_generation": str(number)},
            )
        for name, version in expected.versions.items():
            if (found := heads.get(name, 0)) != version:
                raise Conflict(
                    f"{name} has moved on: {_shown(name, found)} is active, not {_shown(name, version)}",
                    field=f"expected_versions[{name}]",
                    metadata={"current_generation": str(number), "name": name, "current_version": str(found)},
                )

    def _answered(self, request_id: str, request_digest: str, heads: Mapping[str, int]) -> GenerationRecord | None:
        """The generation that this request made before. AlreadyExists if its id stands for another request."""
        self.store.check_request(request_id, request_digest)
        first = self.store.generation_of_request(request_id) if request_id else None
        if first is not None and first.request_digest and request_digest:
            return first  # the digests are equal, or `check_request` would have refused
        if first is not None and any(first.heads.get(name) != version for name, version in heads.items()):
            raise AlreadyExists(f"the request id was used for generation {first.number}, with other heads", field="request_id")
        return first


def _unknown_name(name: str, active: ActiveSet, field: str) -> NotFound:
    """An error that lists what there is: most unknown names are misspelt."""
    known = ", ".join(sorted(active.heads)[:MAX_LISTED]) + (" and others" if len(active.heads) > MAX_LISTED else "")
    return NotFound(f"no active head of this name: {name!r}\nhint: active are {known or 'none'}", field=field, metadata={"name": name})


def _digests(active: ActiveSet) -> set[str]:
    return {head.live.digest for head in active.heads.values()}


def _shown(name: str, version: int) -> str:
    return f"{name}@{version}" if version else f"no {name}"
