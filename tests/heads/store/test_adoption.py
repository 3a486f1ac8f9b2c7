"""What a follower writes: the primary's records, byte for byte, and after kill -9 at any step exactly some past generation of it."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, NotFound
from polyhead.heads.store import failpoints, records
from polyhead.heads.store.store import HeadStore, VersionRecord
from tests.e2e.forked import ForkedStore
from tests.heads.store.store_support import RAM, TRUNK, activate, assert_no_leftovers, blob, push

BLOB = [name for name in failpoints.PUSH if name not in failpoints.REBUILD]
GENERATION = [name for name in failpoints.ACTIVATE if name.startswith(("before_generation", "after_generation"))]
SPENT = [name for name in failpoints.DELETE if "high_water" in name]
STEPS = [*BLOB, *GENERATION, *SPENT]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=RAM) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def primary() -> Iterator[Path]:
    """Two generations of two heads, and spent numbers of a name that has versions and of one that has none."""
    with tempfile.TemporaryDirectory(dir=RAM) as name:
        with HeadStore.open(Path(name) / "store", TRUNK) as store:
            for number in (1, 2):
                activate(store, {head: push(store, head, f"{head} {number}") for head in ("policy", "value")})
            for head in ("policy", "snapshot"):
                store.delete_version(head, push(store, head, "short-lived"))
        yield Path(name) / "store"


def follow(primary: Path, folder: Path, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.heads.store.follow_child", str(primary), str(folder)]
    with ForkedStore(command, env={"POLYHEAD_FP": failpoint}, text=True) as child:
        output, errors = child.communicate(timeout=60)
    return subprocess.CompletedProcess(command, child.returncode, output, errors)


def texts(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json")}


def assert_is_past(folder: Path, primary: Path) -> int:
    """Which generation of the primary: whatever is there is the primary's, and what is active can be served."""
    with HeadStore.open(folder, TRUNK) as store:
        assert store.damage is None
        assert store.verify_active() is None
        number = store.current.number if store.current else 0
    assert_no_leftovers(folder)
    assert texts(folder).items() <= texts(primary).items()
    return number


@pytest.mark.parametrize("visit", [1, 2])
@pytest.mark.parametrize("name", STEPS)
def test_a_follower_killed_at_every_step_holds_a_past_generation_and_catches_up(
    primary: Path, tmp_path: Path, name: str, visit: int
) -> None:
    folder = tmp_path / "store"
    child = follow(primary, folder, f"{name}:kill@{visit}")
    assert child.returncode == -signal.SIGKILL, f"{name} was never visited: {child.stderr}"
    assert assert_is_past(folder, primary) in (0, 1, 2)
    assert follow(primary, folder).returncode == 0
    assert texts(folder) == texts(primary)


def test_histories_that_went_apart_have_other_ids_from_there_on(primary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    follow(primary, folder)
    with HeadStore.open(primary, TRUNK) as ours, HeadStore.open(folder, TRUNK) as theirs:
        assert ours.current is not None
        assert [ours.history_id(number) for number in (1, 2)] == [theirs.history_id(number) for number in (1, 2)]
        assert ours.history_id(2) == records.history_id(ours.current)
        activate(theirs, {"policy": 1})
        assert (ours.history_id(3), len(theirs.history_id(3))) == ("", records.HISTORY_ID_CHARS)


def test_past_generations_fill_in_and_change_nothing(primary: Path, tmp_path: Path) -> None:
    """A new follower takes the active set first: a crash must not leave an older one as the highest."""
    with HeadStore.open(primary, TRUNK) as ours, HeadStore.open(tmp_path / "store", TRUNK) as store:
        first, second = ours.generation(1), ours.generation(2)
        for name, number in second.heads.items():
            store.put_blob(ours.read_blob(ours.get(name, number).blob))
            store.adopt_version(ours.get(name, number))
        store.adopt_generation(second)
        store.adopt_generation(first)
        assert store.current == second
        assert store.history() == [second, first]
        assert store.commit_generation(second.heads, parent=1).previous == records.sha256_of(second)


def test_what_does_not_fit_is_refused(primary: Path, tmp_path: Path) -> None:
    with HeadStore.open(primary, TRUNK) as ours, HeadStore.open(tmp_path / "store", TRUNK) as store:
        version = ours.get("policy", 1)
        with pytest.raises(FailedPrecondition, match="no such blob"):
            store.adopt_version(version)
        store.put_blob(blob("policy 1"))
        with pytest.raises(DataLoss, match="another size"):
            store.adopt_version(dataclasses.replace(version, num_bytes=1))
        with pytest.raises(FailedPrecondition, match="another trunk"):
            store.adopt_version(dataclasses.replace(version, manifest=dataclasses.replace(version.manifest, trunk_id="cd" * 32)))
        store.adopt_version(version)
        store.adopt_version(dataclasses.replace(version, labels=("best",)))
        assert store.get("policy", 1).labels == ("best",)


def pull(store: HeadStore, ours: HeadStore, version: VersionRecord) -> None:
    """As a follower takes a version that the primary sends."""
    if not store.is_blob_held(version.blob, version.num_bytes):
        store.put_blob(ours.read_blob(version.blob))
    store.adopt_version(version)


@pytest.mark.parametrize("damage", [b"", b"\0" * len(blob("policy 1")), None])
def test_damaged_weights_are_pulled_again(primary: Path, tmp_path: Path, damage: bytes | None) -> None:
    """A follower took a version's word for its file: what rotted on its disk stayed as it was, whatever was pushed again."""
    with HeadStore.open(primary, TRUNK) as ours, HeadStore.open(tmp_path / "store", TRUNK) as store:
        version = ours.get("policy", 1)
        pull(store, ours, version)
        path = tmp_path / "store" / "blobs" / version.blob
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(DataLoss):
            store.verify({"policy": 1})
        assert not store.is_usable(version)
        pull(store, ours, version)
        assert store.is_usable(version)
        store.verify({"policy": 1})
        store.delete_version("policy", 1)
        assert not path.exists(), "nothing else held it"


def test_a_damaged_record_is_replaced(primary: Path, tmp_path: Path) -> None:
    """It was taken for another server's, on every try, with the advice to stop this one."""
    folder = tmp_path / "store"
    with HeadStore.open(primary, TRUNK) as ours:
        version = ours.get("policy", 2)
        with HeadStore.open(folder, TRUNK) as store:
            pull(store, ours, version)
        path = folder / "versions" / "policy" / "2.json"
        path.write_bytes(path.read_bytes()[:-3])
        with HeadStore.open(folder, TRUNK) as store:
            assert not store.is_usable(version)
            pull(store, ours, version)
            assert store.get("policy", 2) == version
    with HeadStore.open(folder, TRUNK) as store:
        store.verify({"policy": 2})
        assert store.other_damage == ()


def test_what_an_old_primary_has_alone_gives_way_unless_it_was_active(primary: Path, tmp_path: Path) -> None:
    """It had acknowledged a version that nobody had copied, under a number that the new primary gave out, too: it was stuck."""
    folder = tmp_path / "store"
    with HeadStore.open(primary, TRUNK) as ours:
        version, active = ours.get("policy", 1), ours.get("value", 1)
    with HeadStore.open(primary, TRUNK) as ours, HeadStore.open(folder, TRUNK) as store:
        own = store.get("policy", push(store, "policy", "acknowledged by the old primary"))
        adapted = store.get("adapted", push(store, "adapted", "on it", base="policy@1"))
        activate(store, {"value": push(store, "value", "active")})
        store.put_blob(ours.read_blob(version.blob))
        assert store.adopt_version(version) == [own, adapted]
        store.put_blob(ours.read_blob(active.blob))
        with pytest.raises(FailedPrecondition, match=r"value@1 holds other weights here.*\nhint: stop this server, move its store"):
            store.adopt_version(active)
        store.discard_blob(active.blob)
    assert_no_leftovers(folder)
    with HeadStore.open(folder, TRUNK) as store:
        assert store.versions("policy") == [version]
        assert store.verify_active() is None
        assert push(store, "adapted", "next") == 2


def test_a_number_that_was_given_out_elsewhere_is_never_used_again(primary: Path, tmp_path: Path) -> None:
    """A follower that is made the primary: a version that came and went before it was told of it had this number."""
    with HeadStore.open(primary, TRUNK) as ours, HeadStore.open(tmp_path / "store", TRUNK) as store:
        store.put_blob(ours.read_blob(ours.get("policy", 1).blob))
        store.adopt_version(ours.get("policy", 1))
        store.adopt_spent("policy", 4)
        store.adopt_spent("policy", 2)
        store.adopt_spent("snapshot", 1)
        assert store.spent() == {"policy": 4, "snapshot": 1}
        assert store.names() == ["policy"]
        with pytest.raises(NotFound, match=r"snapshot@1\nhint: it is no longer stored"):
            store.get("snapshot", 1)
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        assert (push(store, "policy", "next"), push(store, "snapshot", "next")) == (5, 2)
        assert store.spent() == {}
        store.delete_version("snapshot", 2)
        assert store.spent() == {"snapshot": 2}
