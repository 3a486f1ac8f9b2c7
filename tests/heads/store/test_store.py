"""What the head store promises while nothing crashes: versions, generations, deletion, names, permissions, limits."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from polyhead.heads.format.errors import (
    AlreadyExists,
    Conflict,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PolyheadError,
    ResourceExhausted,
)
from polyhead.heads.store import failpoints
from polyhead.heads.store.store import HeadStore, StoreLocked, UnsafeFile
from tests.heads.store.store_support import RAM, ROOT, TRUNK, activate, assert_no_leftovers, blob, manifest, push

BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "/abs", "a\\b", "a\0b", "%2e%2e", "con/..", "-x", ".x", "x..y", "A", "ä", "a b", "a\n",
    "a" * 65, "a" * 300, "policy/", "x:y", "\u2024\u2024/", "policy@1", "\udc80",
]  # fmt: skip


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=RAM) as name:
        yield Path(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[HeadStore]:
    with HeadStore.open(folder, TRUNK) as store:
        yield store
    failpoints.disarm()


# ---- opening


def test_a_new_store_is_private_and_empty(store: HeadStore, folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.rglob("*"))
    assert (store.current, store.damage, store.other_damage, store.names(), store.history()) == (None, None, (), [], [])
    assert (folder / "RESERVE").stat().st_size == 64 * 1024


def test_two_stores_on_one_folder(store: HeadStore, folder: Path) -> None:
    """K10, in this process and from another one."""
    with pytest.raises(StoreLocked, match=f"locked by another server: process {os.getpid()}"):
        HeadStore.open(folder, TRUNK)
    code = f"from polyhead.heads.store.store import HeadStore; HeadStore.open({str(folder)!r}, {TRUNK!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "StoreLocked" in other.stderr
    store.close()
    HeadStore.open(folder, TRUNK).close()


def test_another_trunk_is_refused(store: HeadStore, folder: Path) -> None:
    store.close()
    with pytest.raises(FailedPrecondition, match="another trunk"):
        HeadStore.open(folder, "cd" * 32)
    assert HeadStore.read_trunk_id(folder) == TRUNK
    with pytest.raises(InvalidArgument):
        HeadStore.open(folder, "../" + TRUNK[:61])


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_others_could_write_to_is_refused(folder: Path, mode: int) -> None:
    """P04."""
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UnsafeFile, match="writable"):
        HeadStore.open(folder, TRUNK)


def test_a_folder_with_something_else_in_it_is_not_adopted(folder: Path) -> None:
    """`--store ~` must not turn a home folder into a store."""
    folder.mkdir(mode=0o700)
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(FailedPrecondition, match="not a head store"):
        HeadStore.open(folder, TRUNK)
    assert sorted(os.listdir(folder)) == ["LOCK", "thesis.tex"]


def test_a_store_without_its_identity_is_not_taken_for_a_new_one(store: HeadStore, folder: Path) -> None:
    push(store, "policy", 1)
    store.close()
    (folder / "STORE").unlink()
    with pytest.raises(FailedPrecondition, match="lost its STORE file"):
        HeadStore.open(folder, "cd" * 32)


PLANTED_FILES = ["STORE", "LOCK", "generations/1.json", "versions/policy/1.json"]
PLANTED = [
    *((target, kind) for target in PLANTED_FILES for kind in ("symlink", "hard link", "fifo")),
    *((target, kind) for target in ("blobs", "versions", "versions/policy", "generations") for kind in ("symlink", "fifo")),
]


@pytest.mark.parametrize(("target", "kind"), PLANTED)
def test_planted_links_and_devices_are_refused(store: HeadStore, folder: Path, tmp_path: Path, target: str, kind: str) -> None:
    """P02: nothing outside the store is read as a part of it, and nothing hangs on a pipe."""
    activate(store, {"policy": push(store, "policy", 1)})
    store.close()
    path, outside = folder / target, tmp_path / "outside"
    path.rename(outside)
    if kind == "symlink":
        path.symlink_to(outside)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.link(outside, path)
    with pytest.raises((UnsafeFile, FailedPrecondition)):
        HeadStore.open(folder, TRUNK)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo"])
def test_a_planted_blob_is_refused(store: HeadStore, folder: Path, tmp_path: Path, kind: str) -> None:
    push(store, "policy", 1)
    digest = store.get("policy", 1).digest
    path = folder / "blobs" / digest
    path.rename(tmp_path / "outside")
    if kind == "symlink":
        path.symlink_to(tmp_path / "outside")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.link(tmp_path / "outside", path)
    with pytest.raises(PolyheadError):
        store.read_blob(digest)
    store.close()
    with pytest.raises(UnsafeFile):
        HeadStore.open(folder, TRUNK)


STRAY = ["blobs/x", "versions/X", "versions/x", "versions/policy/x.json", "generations/01.json", "staging/x"]


@pytest.mark.parametrize("place", STRAY)
def test_files_that_do_not_belong_here_are_named(store: HeadStore, folder: Path, place: str) -> None:
    push(store, "policy", 1)
    store.close()
    (folder / place).write_text("x")
    with pytest.raises(PolyheadError):
        HeadStore.open(folder, TRUNK)
    assert (folder / place).exists()


# ---- pushing


def test_a_push_arrives_whole(store: HeadStore, folder: Path) -> None:
    assert push(store, "policy", 1) == 1
    record = store.get("policy", 1)
    assert record.digest == hashlib.sha256(blob(1)).hexdigest()
    assert record.num_bytes == len(blob(1))
    assert store.read_blob(record.digest) == blob(1)
    store.read_blob(record.digest)[0] = 0  # private memory: the file is as it was
    assert store.read_blob(record.digest) == blob(1)
    assert store.disk_bytes() == len(blob(1)) + 64 * 1024
    assert_restarts_equal(store, folder)


def assert_restarts_equal(store: HeadStore, folder: Path) -> None:
    """Everything that can be asked is the same after a restart."""
    before = (store.names(), [store.versions(name) for name in store.names()], store.history(), store.current)
    store.close()
    with HeadStore.open(folder, TRUNK) as again:
        after = (again.names(), [again.versions(name) for name in again.names()], again.history(), again.current)
    assert after == before


@pytest.mark.parametrize(
    ("declared", "chunks", "message"),
    [(10, [b"12345", b"678901"], "more bytes"), (10, [b"123"], "fewer bytes"), (3, [b"124"], "another SHA-256")],
)
def test_a_push_that_is_not_what_it_declared(store: HeadStore, folder: Path, declared: int, chunks: list[bytes], message: str) -> None:
    """H07, H08: refused at the first byte too many, and nothing is left."""

    def push_chunks() -> None:
        with store.begin_push(declared, hashlib.sha256(b"123").hexdigest()) as staging:
            for chunk in chunks:
                staging.write(chunk)
            staging.finish()

    with pytest.raises(InvalidArgument, match=message):
        push_chunks()
    assert os.listdir(folder / "blobs") == os.listdir(folder / "staging") == []


@pytest.mark.parametrize("declared", [0, -1, True, 1.5])
def test_senseless_sizes(store: HeadStore, declared: int) -> None:
    with pytest.raises(InvalidArgument):
        store.begin_push(declared, "0" * 64)


@pytest.mark.parametrize("digest", ["", "x" * 64, "A" * 64, "../" + "0" * 61, "0" * 63, "0" * 64 + "\n"])
def test_bad_digests(store: HeadStore, digest: str) -> None:
    for call in (
        lambda: store.begin_push(3, digest),
        lambda: store.read_blob(digest),
        lambda: store.discard_blob(digest),
        lambda: store.add_version("policy", digest, manifest()),
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_staged_bytes_can_be_checked_before_anything_is_published(store: HeadStore, folder: Path) -> None:
    with store.begin_push(3, hashlib.sha256(b"123").hexdigest()) as staging:
        staging.write(memoryview(b"123"))
        assert staging.verify() == hashlib.sha256(b"123").hexdigest()
        assert staging.read() == b"123"
        assert os.listdir(folder / "blobs") == []
    assert os.listdir(folder / "staging") == []  # left without finish: gone


def test_pushes_at_the_same_time_are_limited(folder: Path) -> None:
    with HeadStore.open(folder, TRUNK, max_staged=2) as store:
        first = store.begin_push(3, "0" * 64)
        second = store.begin_push(3, "0" * 64)
        with pytest.raises(ResourceExhausted):
            store.begin_push(3, "0" * 64)
        first.abort()
        first.abort()
        store.begin_push(3, "0" * 64).abort()
        with pytest.raises(FailedPrecondition, match="already ended"):
            first.write(b"1")
        second.abort()


def test_equal_weights_are_stored_once(store: HeadStore, folder: Path) -> None:
    push(store, "policy", 1)
    push(store, "reference", 1)
    digest = store.get("policy", 1).digest
    assert os.listdir(folder / "blobs") == [digest]
    store.delete_version("policy", 1)
    assert store.read_blob(digest) == blob(1)
    store.delete_version("reference", 1)
    assert os.listdir(folder / "blobs") == []


def test_a_finished_push_waits_for_its_version(store: HeadStore, folder: Path) -> None:
    """Deleting the last version of equal weights must not take the blob from a push that is between its two steps."""
    push(store, "policy", 1)
    digest = store.put_blob(blob(1))
    store.delete_version("policy", 1)
    store.collect(1)
    assert store.add_version("policy", digest, manifest()).version == 2
    other = store.put_blob(blob(2))
    store.discard_blob(other)
    assert os.listdir(folder / "blobs") == [digest]
    with pytest.raises(FailedPrecondition, match="push it first"):
        store.add_version("policy", other, manifest())


def test_a_new_version_without_bytes(store: HeadStore) -> None:
    push(store, "policy", 1)
    record = store.get("policy", 1)
    copy = store.add_version("reference", record.digest, manifest(base="policy@1"), labels=["start"], metrics={"loss": 1})
    assert (copy.version, copy.digest, copy.labels, dict(copy.metrics)) == (1, record.digest, ("start",), {"loss": 1.0})


# ---- versions


def test_numbers_are_never_used_again(store: HeadStore, folder: Path) -> None:
    """After deletion and restart, too: a cache keyed by policy@2 must not meet other weights."""
    for number in (1, 2, 3):
        assert push(store, "policy", number) == number
    for number in (3, 2, 1):
        store.delete_version("policy", number)
    assert store.names() == []
    store.close()
    with HeadStore.open(folder, TRUNK) as again:
        assert push(again, "policy", 1) == 4
        again.delete_version("policy", 4)
        assert push(again, "policy", 5) == 5
    assert_no_leftovers(folder)


def test_a_damaged_high_water_record_stops_new_versions_of_that_name(store: HeadStore, folder: Path) -> None:
    push(store, "policy", 1)
    store.delete_version("policy", 1)
    store.close()
    (folder / "versions" / "policy" / "HIGHEST.json").write_bytes(b"{")
    with HeadStore.open(folder, TRUNK) as again:
        assert again.damage is None
        assert again.other_damage[0].repair == f"rm {folder}/versions/policy/HIGHEST.json"
        with pytest.raises(DataLoss):
            push(again, "policy", 2)
        assert push(again, "value", 2) == 1


def test_a_damaged_version_is_reported_and_can_be_deleted(store: HeadStore, folder: Path) -> None:
    activate(store, {"policy": push(store, "policy", 1)})
    push(store, "policy", 2)
    store.close()
    (folder / "versions" / "policy" / "2.json").write_bytes(b"torn")
    with HeadStore.open(folder, TRUNK) as again:
        assert again.damage is None
        assert again.other_damage[0].repair == f"polyhead heads delete policy@2 --store {folder}"
        with pytest.raises(DataLoss):
            again.get("policy", 2)
        assert len(os.listdir(folder / "blobs")) == 2  # whose blob it is cannot be known
        again.delete_version("policy", 2)
        assert again.other_damage == ()
        assert push(again, "policy", 3) == 3
    assert_no_leftovers(folder)


def test_a_repeated_push_makes_no_second_version(store: HeadStore, folder: Path) -> None:
    first = push(store, "policy", 1, request_id="a")
    assert push(store, "policy", 1, request_id="a") == first
    found = store.version_of_request("a")
    assert found is not None
    assert found.version == first
    assert store.version_of_request("") is store.version_of_request("b") is None
    for name, label in (("policy", 2), ("value", 1)):
        with pytest.raises(AlreadyExists):
            push(store, name, label, request_id="a")
    store.close()
    with HeadStore.open(folder, TRUNK) as again:
        assert push(again, "policy", 1, request_id="a") == first
        assert push(again, "policy", 1) == 2
    assert_no_leftovers(folder)


def test_heads_of_another_trunk_and_bad_fields_are_refused(store: HeadStore) -> None:
    digest = store.put_blob(blob(1))
    with pytest.raises(FailedPrecondition, match="another trunk"):
        store.add_version("policy", digest, manifest(trunk_id="cd" * 32))
    bad_fields = ({"labels": ["../x"]}, {"request_id": "a\n"}, {"request_id": "a" * 201}, {"metrics": {"loss": float("nan")}})
    for bad in bad_fields:
        with pytest.raises(InvalidArgument):
            store.add_version("policy", digest, manifest(), **bad)
    assert store.names() == []


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(store: HeadStore, folder: Path, name: str) -> None:
    """P01, P03: nothing outside, nothing new inside."""
    before = sorted(folder.parent.rglob("*"))
    digest = store.put_blob(blob(1))
    for call in (
        lambda: store.add_version(name, digest, manifest()),
        lambda: store.get(name, 1),
        lambda: store.versions(name),
        lambda: store.delete_version(name, 1),
        lambda: store.label(name, 1, add=["x"]),
        lambda: store.commit_generation({name: 1}, parent=None),
    ):
        with pytest.raises(InvalidArgument):
            call()
    store.discard_blob(digest)
    assert sorted(folder.parent.rglob("*")) == before


def test_unknown_names_and_numbers(store: HeadStore) -> None:
    push(store, "policy", 1)
    for call in (
        lambda: store.get("policy", 2),
        lambda: store.get("nobody", 1),
        lambda: store.versions("nobody"),
        lambda: store.delete_version("policy", 9),
        lambda: store.delete_version("nobody", 9),
        lambda: store.label("policy", 9, add=["x"]),
        lambda: store.commit_generation({"policy": 2}, parent=None),
        lambda: store.generation(1),
    ):
        with pytest.raises(NotFound):
            call()
    for number in (0, -1, True, 10**9):
        with pytest.raises(InvalidArgument):
            store.get("policy", number)
        with pytest.raises(InvalidArgument):
            store.generation(number)


def test_one_place_turns_an_id_into_a_path() -> None:
    """P05: only layout.py knows the folders' names, and it alone checks a name on its way into a path."""
    sources = {path.name: path.read_text() for path in (ROOT / "heads" / "store").glob("*.py")}
    for folder in ("blobs", "versions", "generations"):
        assert [name for name, text in sources.items() if re.search(rf'"{folder}"|f"{folder}/', text)] == ["layout.py"]
    assert sources["layout.py"].count("check_name(") == 1


# ---- generations


def test_an_activation_and_its_history(store: HeadStore, folder: Path) -> None:
    heads = {name: push(store, name, name) for name in ("policy", "value")}
    answer = {"heads": [{"name": "policy"}]}
    first = store.commit_generation(heads, parent=None, expected_generation=0, note="start", answer=answer)
    second = store.commit_generation({"policy": 1}, parent=1, expected_generation=1)
    assert (first.number, first.parent, dict(first.heads), first.note) == (1, None, heads, "start")
    assert store.current == second
    assert store.history() == [second, first]
    assert store.generation(1) == first
    assert_restarts_equal(store, folder)


def test_a_stale_expectation_changes_nothing(store: HeadStore) -> None:
    push(store, "policy", 1)
    activate(store, {"policy": 1})
    for expected in (0, 2):
        with pytest.raises(Conflict) as caught:
            store.commit_generation({"policy": 1}, parent=1, expected_generation=expected)
        assert caught.value.metadata == {"current_generation": "1"}
    assert len(store.history()) == 1


def test_a_retry_gets_the_first_answer_whatever_it_expects(store: HeadStore, folder: Path) -> None:
    """The client whose connection broke does not know that its own activation moved the generation on."""
    push(store, "policy", 1)
    push(store, "policy", 2)
    first = store.commit_generation({"policy": 1}, parent=None, request_id="a", expected_generation=0, answer={"told": 1})
    store.commit_generation({"policy": 2}, parent=1)
    store.close()
    with HeadStore.open(folder, TRUNK) as again:
        assert again.commit_generation({"policy": 1}, parent=2, request_id="a", expected_generation=0) == first
        assert again.generation_of_request("a") == first
        with pytest.raises(AlreadyExists):
            again.commit_generation({"policy": 2}, parent=2, request_id="a")
        assert again.current is not None
        assert again.current.number == 2


def test_activations_that_cannot_be(store: HeadStore, folder: Path) -> None:
    push(store, "policy", 1)
    bad: list[dict[str, object]] = [
        {"heads": {}, "parent": None},
        {"heads": {"policy": 1}, "parent": 1},
        {"heads": {"policy": 1}, "parent": None, "note": "x" * 5000},
        {"heads": {"policy": 1}, "parent": None, "answer": {"x": object()}},
        {"heads": {"policy": 1}, "parent": None, "answer": {"x": "y" * 40_000}},
    ]
    for arguments in bad:
        with pytest.raises(InvalidArgument):
            store.commit_generation(**arguments)  # type: ignore[arg-type]
    (folder / "blobs" / store.get("policy", 1).digest).unlink()
    with pytest.raises(DataLoss, match="missing"):
        store.commit_generation({"policy": 1}, parent=None)
    assert store.current is None


def test_a_damaged_active_set_stops_everything_but_its_repair(store: HeadStore, folder: Path) -> None:
    activate(store, {"policy": push(store, "policy", 1)})
    activate(store, {"policy": push(store, "policy", 2)})
    activate(store, {"policy": push(store, "policy", 3)})
    (folder / "blobs" / store.get("policy", 2).digest).write_bytes(b"x" * len(blob(2)))
    store.close()
    (folder / "generations" / "3.json").write_bytes(b"")
    with HeadStore.open(folder, TRUNK) as again:
        assert again.damage is not None
        assert again.damage.repair == f"polyhead heads rollback --to 1 --store {folder}"  # 2 is damaged, too
        for call in (
            lambda: again.commit_generation({"policy": 1}, parent=None),
            lambda: again.delete_version("policy", 1, force=True),
            lambda: again.collect(1),
        ):
            with pytest.raises(FailedPrecondition, match="repaired"):
                call()
        assert again.repair_to(1).number == 4
        assert again.damage is None
        assert push(again, "policy", 4) == 4
    with HeadStore.open(folder, TRUNK) as again:
        assert again.current is not None
        assert (again.current.number, again.current.parent) == (4, 1)


def test_a_store_whose_only_generation_is_damaged(store: HeadStore, folder: Path) -> None:
    activate(store, {"policy": push(store, "policy", 1)})
    store.close()
    (folder / "generations" / "1.json").write_bytes(b"")
    with HeadStore.open(folder, TRUNK) as again:
        assert again.damage is not None
        assert "--to 0 " in again.damage.repair
        assert dict(again.repair_to(0).heads) == {}
        assert activate(again, {"policy": 1}).number == 3


# ---- deletion


def test_what_is_in_use_cannot_be_deleted(store: HeadStore) -> None:
    for number in (1, 2, 3, 4):
        push(store, "policy", number)
    for version in (1, 2, 3):
        activate(store, {"policy": version})
    store.label("policy", 4, add=["best"])
    for version, reason in ((3, "active in generation 3"), (2, "rollback to generation 2"), (4, "labelled 'best'")):
        with pytest.raises(FailedPrecondition, match=reason):
            store.delete_version("policy", version)
    store.delete_version("policy", 1)
    with pytest.raises(FailedPrecondition, match="active"):
        store.delete_version("policy", 3, force=True)
    store.delete_version("policy", 2, force=True)
    store.label("policy", 4, remove=["best"])
    store.delete_version("policy", 4)
    assert [record.version for record in store.versions("policy")] == [3]


def test_the_parent_of_a_rollback_stays(store: HeadStore) -> None:
    """A rollback goes to the parent by default, which need not be the generation before."""
    for number in (1, 2, 3):
        push(store, "policy", number)
        store.commit_generation({"policy": number}, parent=1 if number > 1 else None)
    assert store.collect(1) == []
    store.commit_generation({"policy": 3}, parent=3)
    assert [record.version for record in store.collect(1)] == [1, 2]


def test_collect(store: HeadStore, folder: Path) -> None:
    for number in range(1, 8):
        push(store, "policy", number)
        activate(store, {"policy": number})
    store.label("policy", 2, add=["keep"])
    deleted = store.collect(1)
    assert [record.version for record in deleted] == [1, 3, 4, 5]
    assert [record.version for record in store.versions("policy")] == [2, 6, 7]
    assert len(os.listdir(folder / "blobs")) == 3
    assert store.collect(1) == []
    for keep in (0, -1, True):
        with pytest.raises(InvalidArgument):
            store.collect(keep)
    store.close()
    assert_no_leftovers(folder)


def test_labels_survive_a_restart(store: HeadStore, folder: Path) -> None:
    push(store, "policy", 1)
    store.label("policy", 1, add=["best"])
    assert store.label("policy", 1, add=["best"]).labels == ("best",)
    assert_restarts_equal(store, folder)


def test_a_clock_that_jumps_back(store: HeadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """K12: order comes from numbers, never from the clock."""
    for number, now in ((1, 2e9), (2, 1e9), (3, 3e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        push(store, "policy", number)
        activate(store, {"policy": number})
    assert [record.number for record in store.history()] == [3, 2, 1]
    assert [record.version for record in store.collect(1)] == [1]


def test_many_threads(store: HeadStore, folder: Path) -> None:
    """Pushes, activations and collections at the same time: no number twice, no blob lost, no error but a full push queue."""
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for number in range(8):
                label = (worker + number) % 5  # the same weights come from several threads
                version = push(store, "policy", label)
                store.commit_generation({"policy": version}, parent=None)
                store.label("policy", version, add=["pinned"])
                assert store.read_blob(store.get("policy", version).digest) == blob(label)
                store.label("policy", version, remove=["pinned"])
                store.collect(4)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # another worker may collect a version before it is activated or labelled here; nothing else may fail
    assert all(isinstance(failure, NotFound) for failure in failures), failures
    numbers = [record.number for record in store.history()]
    assert numbers == list(range(len(numbers), 0, -1))
    store.close()
    assert_no_leftovers(folder)


# ---- against a model


class StoreAgainstModel(RuleBasedStateMachine):
    """K11: random pushes, activations, rollbacks, deletions and restarts, compared with dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=RAM)
        self.store = HeadStore.open(Path(self.folder.name) / "store", TRUNK)
        self.versions: dict[tuple[str, int], bytes] = {}
        self.highest: dict[str, int] = {}
        self.generations: list[dict[str, int]] = []

    def teardown(self) -> None:
        self.store.close()
        assert_no_leftovers(Path(self.folder.name) / "store")
        self.folder.cleanup()

    @rule(name=st.sampled_from(["policy", "value"]), label=st.integers(0, 4))
    def push(self, name: str, label: int) -> None:
        version = push(self.store, name, label)
        self.highest[name] = self.highest.get(name, 0) + 1
        assert version == self.highest[name]
        self.versions[name, version] = blob(label)

    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        if self.versions:
            name, version = data.draw(st.sampled_from(sorted(self.versions)))
            heads = {**(self.generations[-1] if self.generations else {}), name: version}
            activate(self.store, heads)
            self.generations.append(heads)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        if self.generations:
            number = data.draw(st.integers(1, len(self.generations)))
            heads = self.generations[number - 1]
            if heads.items() <= self.versions.keys():
                activate(self.store, dict(self.store.generation(number).heads))
                self.generations.append(heads)
            else:
                with pytest.raises(NotFound):
                    activate(self.store, heads)

    @rule(data=st.data(), force=st.booleans())
    def delete(self, data: st.DataObject, force: bool) -> None:
        if self.versions:
            name, version = data.draw(st.sampled_from(sorted(self.versions)))
            kept = self.generations[-1:] if force else self.generations[-2:]
            if any(heads.get(name) == version for heads in kept):
                with pytest.raises(FailedPrecondition):
                    self.store.delete_version(name, version, force=force)
            else:
                self.store.delete_version(name, version, force=force)
                del self.versions[name, version]

    @rule(keep=st.integers(1, 3))
    def collect(self, keep: int) -> None:
        self.store.collect(keep)
        kept = {item for heads in self.generations[-2:] for item in heads.items()}
        for name in self.highest:
            numbers = sorted(version for other, version in self.versions if other == name)
            for version in numbers[:-keep]:
                if (name, version) not in kept:
                    del self.versions[name, version]

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = HeadStore.open(Path(self.folder.name) / "store", TRUNK)

    @invariant()
    def agrees(self) -> None:
        stored = [record for name in self.store.names() for record in self.store.versions(name)]
        found = {(record.name, record.version): record.digest for record in stored}
        assert found == {key: hashlib.sha256(content).hexdigest() for key, content in self.versions.items()}
        assert [dict(record.heads) for record in reversed(self.store.history())] == self.generations
        current = self.store.current
        assert (dict(current.heads) if current else None) == (self.generations[-1] if self.generations else None)


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
