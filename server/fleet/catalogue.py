"""What a follower lacks of what the primary's store holds, the most urgent first. It compares states: nothing can be missed or come twice.

Knows records and tasks, not streams. Methods read the store: call them from a worker thread.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from polyhead.heads.format.errors import NotFound, PolyheadError
from polyhead.heads.format.manifest import parse_reference
from polyhead.heads.store import records
from polyhead.heads.store.store import GenerationRecord, HeadStore, VersionRecord
from polyhead.server.ood import store as ood_records
from polyhead.server.ood.store import OodStore
from polyhead.server.rewards import configuration_store as configuration_records
from polyhead.server.rewards.configuration_store import ConfigurationStore
from polyhead.server.rewards.library import Library
from polyhead.v1 import fleet_pb2

CHUNK_BYTES = 1 << 20
NUM_GENERATIONS = 100  # past ones that a follower keeps the records of: for a rollback after it was made the primary

Read = TypeVar("Read")
Key = tuple[str, bytes]  # of a task: the same when it is given again


class Unreadable(PolyheadError):
    """What a task sends cannot be read here. The session leaves that task out for a while."""

    def __init__(self, key: Key, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(slots=True)
class Held:
    """What a follower has, by what it said first and has done since."""

    generation: int = 0
    versions: dict[tuple[str, int], bytes] = field(default_factory=dict)  # SHA-256 of the record
    highest: dict[str, int] = field(default_factory=dict)  # the last number of a name; it may know of later ones, of before its Hello
    generations: set[int] = field(default_factory=set)  # past ones
    fits: dict[str, bytes] = field(default_factory=dict)  # by reference: SHA-256 of the record
    configurations: dict[str, bytes] = field(default_factory=dict)
    fit_sent: tuple[str, int] = "", 0  # the fit that is being sent, and how many of its bytes have been
    has_caught_up: bool = False  # has all that the active generation needs, and was told so

    @classmethod
    def of(cls, hello: fleet_pb2.Hello) -> Held:
        held = cls(
            generation=hello.generation,
            versions={(each.name, each.version): each.record_sha256 for each in hello.versions},
            generations=set(hello.generations),
            fits={each.key: each.record_sha256 for each in hello.fits},
            configurations={each.key: each.record_sha256 for each in hello.configurations},
        )
        for name, version in held.versions:
            held._knows_of(name, version)
        return held

    def _knows_of(self, name: str, version: int) -> None:
        self.highest[name] = max(self.highest.get(name, 0), version)

    def note(self, task: fleet_pb2.FollowResponse) -> None:
        """The follower has done it."""
        match task.WhichOneof("task"):
            case "store_version":
                version = records.decode_version(task.store_version.record)
                self.versions[version.name, version.version] = _sha256(task.store_version.record)
                self._knows_of(version.name, version.version)
            case "forget_versions":
                for reference in task.forget_versions.heads:
                    name, number = parse_reference(reference, "heads")
                    self.versions.pop((name, number), None)
                    self._knows_of(name, number)
            case "commit_generation":
                self.generations.add(self.generation)
                self.generation = records.decode_generation(task.commit_generation.record).number
            case "keep_generation":
                self.generations.add(records.decode_generation(task.keep_generation.record).number)
            case "store_fit":
                fit = ood_records.decode(task.store_fit.record)
                self.fit_sent = fit.reference, task.store_fit.offset + len(task.store_fit.data)
                if self.fit_sent[1] == fit.num_bytes:
                    self.fits[fit.reference], self.fit_sent = _sha256(task.store_fit.record), ("", 0)
            case "forget_fit":
                self.fits.pop(f"{task.forget_fit.name}@{task.forget_fit.version}", None)
            case "store_configuration":
                stored = configuration_records.decode(task.store_configuration.record)
                self.configurations[configuration_key(stored)] = _sha256(task.store_configuration.record)
            case "caught_up":
                self.has_caught_up = True


class Catalogue:
    """The primary's three stores as one list."""

    def __init__(self, store: HeadStore, fits: OodStore, configurations: ConfigurationStore) -> None:
        self._store = store
        self._fits = fits
        self._configurations = configurations
        self._hashed: dict[tuple[str, int], tuple[VersionRecord, bytes]] = {}

    def hello(self) -> fleet_pb2.Hello:
        """What these stores hold undamaged: a follower's first message, for others to complete. The primary sends the rest again."""
        current = self._store.current
        return fleet_pb2.Hello(
            generation=current.number if current else 0,
            history_id=records.history_id(current) if current else "",
            versions=[
                fleet_pb2.HeldVersion(name=each.name, version=each.version, record_sha256=self._sha256_of(each))
                for each in self._versions()
                if self._store.is_usable(each)
            ],
            generations=[each.number for each in self._kept_generations()],
            fits=[
                fleet_pb2.HeldRecord(key=each.reference, record_sha256=_sha256(ood_records.encode(each)))
                for each in self._fits.listing()
                if self._fits.is_whole(each)
            ],
            configurations=[
                fleet_pb2.HeldRecord(key=configuration_key(each), record_sha256=_sha256(configuration_records.encode(each)))
                for each in self._configurations.all()
                if self._configurations.is_whole(each)
            ],
        )

    def next_task(self, held: Held, wanted: Mapping[str, int], failed: Collection[Key] = ()) -> fleet_pb2.FollowResponse | None:
        """The most urgent task; None if there is none. `wanted`: versions that are to be prepared, and no more than those.

        `failed`: tasks that are left out, with those that need them. Unreadable names one more.
        """
        if wanted:
            return next(self._store_versions(held, self._with_bases(wanted)), None)
        return next((task for task in self._tasks(held, failed) if key_of(task) not in failed), None)

    def _tasks(self, held: Held, failed: Collection[Key]) -> Iterator[fleet_pb2.FollowResponse]:
        versions = self._versions()  # under the store's lock, after which `current` is what the latest announced change has made it
        current = self._store.current
        self._forget_hashes(versions)
        yield from self._store_configurations(held, failed)  # heads are asked with them
        if current is not None and ("commit_generation", records.encode_generation(current)) not in failed:
            yield from _while_done(self._take_up(held, current), failed)
        yield from self._store_fits(held, failed)
        if current is not None and held.generation == current.number and not held.has_caught_up:
            yield fleet_pb2.FollowResponse(caught_up=fleet_pb2.CaughtUp())
        yield from self._forget(held, {(each.name, each.version) for each in versions}, self._store.spent())
        yield from self._store_versions(held, sorted(versions, key=_newest_first))
        yield from self._keep_generations(held)

    def _take_up(self, held: Held, current: GenerationRecord) -> Iterator[fleet_pb2.FollowResponse]:
        """The active generation, after what it names."""
        commit = fleet_pb2.CommitGeneration(record=records.encode_generation(current))
        yield from self._store_versions(held, _read(("commit_generation", commit.record), partial(self._with_bases, current.heads)))
        if held.generation < current.number:
            yield fleet_pb2.FollowResponse(commit_generation=commit)

    def _versions(self) -> list[VersionRecord]:
        found: list[VersionRecord] = []
        for name in self._store.names():
            try:
                found += self._store.versions(name)
            except NotFound:  # its last version was deleted a moment ago
                continue
        return found

    def _sha256_of(self, version: VersionRecord) -> bytes:
        """Of its record, made once."""
        known = self._hashed.get((version.name, version.version))
        if known is None or known[0] is not version:
            known = self._hashed[version.name, version.version] = version, records.version_sha256(version)
        return known[1]

    def _forget_hashes(self, versions: Collection[VersionRecord]) -> None:
        """Of versions that are deleted. Other threads may add to them meanwhile."""
        if len(self._hashed) > len(versions):
            for key in {*self._hashed} - {(each.name, each.version) for each in versions}:
                self._hashed.pop(key, None)

    def _with_bases(self, heads: Mapping[str, int]) -> list[VersionRecord]:
        """What LoRA heads are built on comes before them."""
        found = [self._store.get(*head) for head in heads.items()]
        return [*(self._store.get(*each.manifest.base_version()) for each in found if each.manifest.lora is not None), *found]

    def _store_versions(self, held: Held, versions: Iterable[VersionRecord]) -> Iterator[fleet_pb2.FollowResponse]:
        for each in versions:
            if held.versions.get((each.name, each.version)) != self._sha256_of(each):
                record = records.encode_version(each)
                yield fleet_pb2.FollowResponse(store_version=fleet_pb2.StoreVersion(record=record))

    def _forget(self, held: Held, kept: set[tuple[str, int]], spent: Mapping[str, int]) -> Iterator[fleet_pb2.FollowResponse]:
        """Also what was added and deleted before it was sent: a follower that is made the primary must not give its number out again."""
        unknown = {(name, version) for name, version in spent.items() if held.highest.get(name, 0) < version}
        missing = {head for head in held.versions.keys() - kept if _is_gone(partial(self._store.get, *head))}
        if gone := sorted(missing | unknown):
            heads = [f"{name}@{version}" for name, version in gone]
            yield fleet_pb2.FollowResponse(forget_versions=fleet_pb2.ForgetVersions(heads=heads))

    def _keep_generations(self, held: Held) -> Iterator[fleet_pb2.FollowResponse]:
        for each in self._kept_generations():
            if each.number < held.generation and each.number not in held.generations:
                record = records.encode_generation(each)
                yield fleet_pb2.FollowResponse(keep_generation=fleet_pb2.KeepGeneration(record=record))

    def _kept_generations(self) -> list[GenerationRecord]:
        """The newest, and what a rollback would go back to."""
        history, current = self._store.history(), self._store.current
        return [each for index, each in enumerate(history) if index < NUM_GENERATIONS or (current and each.number == current.parent)]

    def _store_fits(self, held: Held, failed: Collection[Key]) -> Iterator[fleet_pb2.FollowResponse]:
        fits = self._fits.listing()
        for each in fits:
            offset = held.fit_sent[1] if held.fit_sent[0] == each.reference else 0
            task = fleet_pb2.StoreFit(record=ood_records.encode(each), offset=offset)
            key = "store_fit", task.record
            if held.fits.get(each.reference) != _sha256(task.record) and key not in failed:
                task.data = _read(key, partial(self._fits.content, each))[task.offset :][:CHUNK_BYTES]
                yield fleet_pb2.FollowResponse(store_fit=task)
        for reference in held.fits.keys() - {each.reference for each in fits}:
            name, version = parse_reference(reference, "fits")
            if _is_gone(partial(self._fits.get, name, version, "fits")):
                yield fleet_pb2.FollowResponse(forget_fit=fleet_pb2.ForgetFit(name=name, version=version))

    def _store_configurations(self, held: Held, failed: Collection[Key]) -> Iterator[fleet_pb2.FollowResponse]:
        for each in self._configurations.all():
            task = fleet_pb2.StoreConfiguration(record=configuration_records.encode(each))
            key = "store_configuration", task.record
            if held.configurations.get(configuration_key(each)) != _sha256(task.record) and key not in failed:
                task.content = b"" if each.retired_at else _read(key, partial(self._configurations.content, each))
                yield fleet_pb2.FollowResponse(store_configuration=task)


def key_of(task: fleet_pb2.FollowResponse) -> Key:
    """Its kind, and the record that it sends or what it names."""
    kind = task.WhichOneof("task")
    assert kind is not None, "a task of no kind"
    part: Any = getattr(task, kind)
    return kind, part.record if "record" in part.DESCRIPTOR.fields_by_name else part.SerializeToString()


def _is_gone(find: Callable[[], object]) -> bool:
    """Whether a record was deleted. One that is damaged was not: the follower's copy may be the last good one."""
    try:
        find()
    except NotFound:
        return True
    except PolyheadError:
        return False
    return False


def _while_done(tasks: Iterable[fleet_pb2.FollowResponse], failed: Collection[Key]) -> Iterator[fleet_pb2.FollowResponse]:
    """Tasks of which each needs all before it."""
    return itertools.takewhile(lambda task: key_of(task) not in failed, tasks)


def _read(key: Key, read: Callable[[], Read]) -> Read:
    """What the task `key` sends."""
    try:
        return read()
    except PolyheadError as error:
        raise Unreadable(key, error.message) from None


def configuration_key(stored: configuration_records.StoredConfiguration) -> str:
    return f"{stored.kind.value} {stored.reference}"


def configuration_sha256(library: Library) -> str:
    """Over the configurations of a server's start, which are not sent: both sides have to have the same."""
    found = sorted((each.kind.value, each.reference, each.sha256) for each in library.configurations() if not each.is_added)
    return _sha256(repr(found).encode()).hex()


def _newest_first(version: VersionRecord) -> tuple[bool, float]:
    """Whole heads before LoRA heads, which are built on them."""
    return version.manifest.lora is not None, -version.created_at


def _sha256(record: bytes) -> bytes:
    return hashlib.sha256(record).digest()
