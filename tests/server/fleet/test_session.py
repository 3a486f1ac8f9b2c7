"""A follower's tasks at the primary: woken by each change, without asking again and again; what failed is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.heads.format.errors import DataLoss
from polyhead.heads.format.precision import Precision
from polyhead.heads.store import records
from polyhead.heads.store.store import HeadStore
from polyhead.server.engine.work.pooling import Pooling, PromptPooling
from polyhead.server.fleet import catalogue as catalogue_module
from polyhead.server.fleet import session as session_module
from polyhead.server.fleet.catalogue import Catalogue, Held, Key
from polyhead.server.fleet.members import Members, State
from polyhead.server.fleet.session import Session
from polyhead.server.ood import store as ood_store
from polyhead.server.ood.scores import OodModel
from polyhead.server.ood.store import OodFit, OodStore
from polyhead.server.rewards.configuration_store import ConfigurationStore, StoredConfiguration
from polyhead.server.rewards.configurations import ConfigurationKind
from polyhead.v1 import fleet_pb2
from tests.heads.store.store_support import TRUNK, activate, push
from tests.server.ood.test_ood_store import make_fit, make_model

RECIPE = b"id: terse\nversion: 1\n"
Task = fleet_pb2.FollowResponse


class Workers:
    async def run_control(self, work: Any, *arguments: Any) -> Any:
        return work(*arguments)


class Listed:
    """A catalogue of tasks by hand. An error in the list is raised once."""

    def __init__(self, *found: Task | Exception) -> None:
        self.found = list(found)
        self.num_asked = 0

    def next_task(self, held: Held, wanted: Mapping[str, int], failed: Collection[Key]) -> Task | None:
        self.num_asked += 1
        each = self.found.pop(0) if self.found else None
        if isinstance(each, Exception):
            raise each
        return each


class Follower:
    """Does what it is told, until it is stopped; what it cannot do is in `errors`, by kind."""

    def __init__(self, catalogue: Listed | Catalogue, **errors: str) -> None:
        self.members = Members()
        self.member = self.members.join("b", "b:1", 0, has_caught_up=False)
        self.session = Session(self.member, Held(), catalogue, self.members, Workers())  # type: ignore[arg-type]
        self.tasks: list[str] = []
        self.errors = errors
        self._answers: asyncio.Queue[fleet_pb2.FollowRequest] = asyncio.Queue()
        self._got = asyncio.Semaphore(0)

    async def write(self, task: Task) -> None:
        if (kind := task.WhichOneof("task") or "") != "ping":
            self.tasks.append(kind)
            self._got.release()
            error = self.errors.get(kind, "")
            self._answers.put_nowait(fleet_pb2.FollowRequest(done=fleet_pb2.Done(number=task.number, error=error)))

    async def requests(self) -> AsyncIterator[fleet_pb2.FollowRequest]:
        while True:
            yield await self._answers.get()

    async def gets_task(self) -> None:
        await asyncio.wait_for(self._got.acquire(), 10.0)

    async def gets(self, kind: str) -> None:
        """And whatever comes before it."""
        while kind not in self.tasks:
            await self.gets_task()

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        run = asyncio.ensure_future(self.session.run(self.requests(), self.write))
        yield
        run.cancel()


def tasks_for(catalogue: Catalogue, held: Held) -> list[Task]:
    """All, done one after the other."""
    found = []
    while (task := catalogue.next_task(held, {})) is not None:
        held.note(task)
        found.append(task)
    return found


def forget(name: str) -> Task:
    return Task(forget_versions=fleet_pb2.ForgetVersions(heads=[name]))


async def test_a_follower_without_tasks_is_asked_about_when_something_changes_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked for each second, whether anything had changed or not."""
    monkeypatch.setattr(session_module, "PING_S", 0.0)
    catalogue = Listed(forget("a@1"))
    follower = Follower(catalogue)
    run = asyncio.ensure_future(follower.session.run(follower.requests(), follower.write))
    await follower.gets_task()
    for _ in range(50):
        await asyncio.sleep(0)
    assert catalogue.num_asked == 2, "once with a task, once without"
    catalogue.found.append(forget("a@2"))
    follower.session.wake()
    await follower.gets_task()
    run.cancel()
    assert follower.tasks == ["forget_versions", "forget_versions"]


async def test_a_catalogue_that_could_not_be_read_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "RETRY_S", 0.01)
    follower = Follower(Listed(DataLoss("a record is damaged"), forget("a@1")))
    run = asyncio.ensure_future(follower.session.run(follower.requests(), follower.write))
    await follower.gets_task()
    run.cancel()


@dataclass
class Primary:
    """Two versions, of which the second is active; a fit and a configuration."""

    path: Path
    store: HeadStore
    catalogue: Catalogue


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        fits, configurations = OodStore(store, 3), ConfigurationStore(store)
        numbers = OodModel(**{name: np.zeros(4) for name in OodModel.__dataclass_fields__})
        pooling = PromptPooling(2, Pooling.MEAN)
        fits.add(OodFit("helpful", 0, TRUNK, Precision.FLOAT32, pooling, 40, 0.1, 0.0, 1.0, 1.0), numbers)
        sha256 = hashlib.sha256(RECIPE).hexdigest()
        configurations.add(StoredConfiguration(ConfigurationKind.RECIPE, "terse@1", sha256, len(RECIPE), 1.0), RECIPE)
        for label in ("first", "second"):
            activate(store, {"policy": push(store, "policy", label)})
        yield Primary(tmp_path / "store", store, Catalogue(store, fits, configurations))


EVERYTHING = {"store_configuration", "store_version", "commit_generation", "store_fit", "caught_up", "keep_generation"}


@pytest.mark.parametrize(
    ("file", "kind"), [("ood/helpful@1.safetensors", "store_fit"), ("configurations/recipe--terse@1.yaml", "store_configuration")]
)
async def test_what_cannot_be_read_holds_up_nothing_else(
    primary: Primary, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, file: str, kind: str
) -> None:
    """One damaged fit ended all replication, commits included, with a line in the log every two seconds and no other sign."""
    monkeypatch.setattr(session_module, "RETRY_S", 0.01)
    whole = (primary.path / file).read_bytes()
    (primary.path / file).write_bytes(whole[:-1])
    follower = Follower(primary.catalogue)
    async with follower.following():
        await follower.gets("keep_generation")
        assert {*follower.tasks} == EVERYTHING - {kind}
        assert follower.member.state(2) is State.SERVING
        await asyncio.sleep(0.1)
        assert "damaged" in follower.session.unread
        assert len([line for line in caplog.messages if "damaged" in line]) == 1, "it is read again and again, and logged once"
        (primary.path / file).write_bytes(whole)
        await follower.gets(kind)


@pytest.mark.parametrize("kind", ["store_fit", "store_configuration"])
async def test_a_task_that_fails_holds_up_no_other_and_is_tried_again_after_them(
    primary: Primary, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(session_module, "RETRY_S", 0.01)
    follower = Follower(primary.catalogue, **{kind: "the disk is full"})
    async with follower.following():
        await follower.gets("keep_generation")
        assert {*follower.tasks} == EVERYTHING
        assert follower.tasks.count(kind) == 1, "the others come first"
        assert (follower.member.generation, follower.member.error, follower.member.is_stuck) == (2, "the disk is full", False)
        while follower.tasks[-3:] != [kind] * 3:
            await follower.gets_task()
        assert len([line for line in caplog.messages if "the disk is full" in line]) == 1
        follower.errors.clear()
        while follower.member.error:
            await follower.members.wait(10.0)
        assert follower.member.state(2) is State.SERVING


async def test_an_error_ends_with_the_need_for_what_failed(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version was deleted between its task and the pull: the follower stayed "behind", and clients passed it over."""
    monkeypatch.setattr(session_module, "RETRY_S", 0.01)
    follower = Follower(primary.catalogue)
    async with follower.following():
        await follower.gets("keep_generation")
        follower.tasks.clear()
        follower.errors["store_version"] = "no such head version"
        version = push(primary.store, "policy", "third")
        follower.session.wake()
        await follower.gets("store_version")
        while follower.member.state(2) is not State.BEHIND:
            await follower.members.wait(10.0)
        primary.store.delete_version("policy", version)
        while follower.member.error:
            await asyncio.wait_for(follower.members.wait(10.0), 10.0)
        assert follower.member.state(2) is State.SERVING


async def test_a_generation_that_could_not_be_taken_up_is_forgotten_with_the_next_one(primary: Primary) -> None:
    """With a rollback, above all."""
    follower = Follower(primary.catalogue, commit_generation="no memory")
    async with follower.following():
        await follower.gets("store_fit")
        assert follower.member.is_stuck
        follower.errors.clear()
        follower.tasks.clear()
        activate(primary.store, {"policy": 1})
        follower.session.wake()
        await follower.gets("caught_up")
        assert (follower.member.state(3), follower.member.error) == (State.SERVING, "")


@pytest.mark.parametrize(("kind", "missing"), [("store_version", {"commit_generation"}), ("commit_generation", set[str]())])
async def test_what_needs_a_task_that_failed_waits_for_it(
    primary: Primary, monkeypatch: pytest.MonkeyPatch, kind: str, missing: set[str]
) -> None:
    """A follower is not told that it has caught up, nor of generations before one that it could not take up."""
    monkeypatch.setattr(session_module, "RETRY_S", 0.01)
    follower = Follower(primary.catalogue, **{kind: "no room"})
    async with follower.following():
        while follower.tasks.count(kind) < 6:
            await follower.gets_task()
        assert {*follower.tasks} == EVERYTHING - {"caught_up", "keep_generation"} - missing
        assert (follower.member.is_stuck, follower.member.has_caught_up) == (True, False)
        follower.errors.clear()
        await follower.gets("keep_generation")
        assert follower.member.state(2) is State.SERVING


def test_a_change_that_was_announced_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is announced when it is written, a moment before its record counts: a look in between found nothing."""
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        catalogue = Catalogue(store, OodStore(store, 3), ConfigurationStore(store))
        held = Held(has_caught_up=True)
        activate(store, {"policy": push(store, "policy", "first")})
        while (task := catalogue.next_task(held, {})) is not None:
            held.note(task)
        version = push(store, "policy", "second")
        held.note(catalogue.next_task(held, {}) or Task())
        found: list[Task | None] = []
        looker = threading.Thread(target=lambda: found.append(catalogue.next_task(held, {})))
        looks = threading.Event()
        names = store.names

        def note() -> list[str]:
            looks.set()
            return names()

        def look() -> None:
            store.files.on_change = lambda: None
            looker.start()
            assert looks.wait(10.0)

        monkeypatch.setattr(store, "names", note)
        store.files.on_change = look
        activate(store, {"policy": version})
        looker.join(10.0)
        [task] = found
        assert task is not None
        assert records.decode_generation(task.commit_generation.record).heads == {"policy": version}


def test_what_a_rollback_goes_back_to_is_kept_however_old(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that was made the primary did not have it."""
    monkeypatch.setattr(catalogue_module, "NUM_GENERATIONS", 3)
    for _ in range(5):
        activate(primary.store, {"policy": 2})
    primary.store.commit_generation({"policy": 2}, parent=1)
    held = Held()
    while (task := primary.catalogue.next_task(held, {})) is not None:
        held.note(task)
    assert held.generations - {0} == {6, 7, 1}
    assert {*primary.catalogue.hello().generations} == {8, 7, 6, 1}


def test_hashes_of_deleted_versions_are_forgotten(primary: Primary) -> None:
    """They were kept for as long as the primary ran."""
    held = Held()
    for label in range(3):
        version = push(primary.store, "policy", label)
        while (task := primary.catalogue.next_task(held, {})) is not None:
            held.note(task)
        primary.store.delete_version("policy", version)
    primary.catalogue.next_task(held, {})
    assert {*primary.catalogue._hashed} == {("policy", 1), ("policy", 2)}


def test_what_is_only_damaged_at_the_primary_is_not_deleted_at_a_follower(primary: Primary) -> None:
    """A damaged record was told as a deletion, so that the last good copy went."""
    held = Held()
    while (task := primary.catalogue.next_task(held, {})) is not None:
        held.note(task)
    primary.store.close()
    for record in ("versions/policy/1.json", "ood/helpful@1.json"):
        (primary.path / record).write_bytes(b"{")
    with HeadStore.open(primary.path, TRUNK) as store:
        again = Catalogue(store, OodStore(store, 3), ConfigurationStore(store))
        assert again.next_task(held, {}) is None
        store.delete_version("policy", 1, force=True)
        task = again.next_task(held, {})
        assert task is not None
        assert [*task.forget_versions.heads] == ["policy@1"]


def test_a_fit_that_comes_before_one_that_is_being_sent_begins_at_its_first_byte(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    """It went on where the other one was, so that the follower got a mixture of both."""
    monkeypatch.setattr(catalogue_module, "CHUNK_BYTES", 100)
    held = Held()
    while (task := primary.catalogue.next_task(held, {})) is not None and not held.fit_sent[1]:
        held.note(task)
    fits = primary.catalogue._fits
    fits.add(dataclasses.replace(fits.listing()[0], name="earlier"), fits.load(fits.listing()[0]))
    parts: dict[bytes, bytes] = {}
    while (task := primary.catalogue.next_task(held, {})) is not None:
        held.note(task)
        part = task.store_fit
        parts[part.record] = (b"" if part.offset == 0 else parts[part.record]) + part.data
    assert all(parts[ood_store.encode(fit)] == fits.content(fit) for fit in fits.listing())


def test_a_version_that_came_and_went_unseen_leaves_its_number_spent(tmp_path: Path) -> None:
    """Deleted before it was sent, or while the follower was away."""
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        catalogue = Catalogue(store, OodStore(store, 3), ConfigurationStore(store))

        activate(store, {"policy": push(store, "policy", "first")})
        held = Held()
        tasks_for(catalogue, held)
        store.delete_version("policy", push(store, "policy", "second"))
        store.delete_version("snapshot", push(store, "snapshot", "first"))
        (task,) = tasks_for(catalogue, held)
        assert list(task.forget_versions.heads) == ["policy@2", "snapshot@1"]
        again = Held.of(catalogue.hello())  # a new stream does not know what the one before has said: it says so once more
        assert ["policy@2", "snapshot@1"] in [list(task.forget_versions.heads) for task in tasks_for(catalogue, again)]
        assert tasks_for(catalogue, again) == []


def test_what_is_damaged_at_a_follower_is_sent_again(tmp_path: Path) -> None:
    """It was compared by its records alone."""
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        fits, configurations = OodStore(store, 3), ConfigurationStore(store)
        fits.add(make_fit(), make_model())
        stored = StoredConfiguration(ConfigurationKind.RECIPE, "terse@1", hashlib.sha256(b"content").hexdigest(), 7, 1.0)
        configurations.add(stored, b"content")
        push(store, "policy", "first")
        catalogue = Catalogue(store, fits, configurations)
        whole = catalogue.hello()
        (tmp_path / "store" / "blobs" / store.get("policy", 1).blob).write_bytes(b"")
        (tmp_path / "store" / "ood" / "helpful@1.safetensors").unlink()
        (tmp_path / "store" / "configurations" / "recipe--terse@1.yaml").write_bytes(b"changed")
        assert [len(each) for each in (whole.versions, whole.fits, whole.configurations)] == [1, 1, 1]
        damaged = catalogue.hello()
        assert [len(each) for each in (damaged.versions, damaged.fits, damaged.configurations)] == [0, 0, 0]
