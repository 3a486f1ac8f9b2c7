"""The folder under a running store: replaced locks, deleted folders, rotten files, a full disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyhead.heads.format.errors import DataLoss, PolyheadError, ResourceExhausted
from polyhead.heads.store import failpoints, io_errors
from polyhead.heads.store.rename_new import rename_new
from polyhead.heads.store.scrub import SLICE_BYTES
from polyhead.heads.store.store import HeadStore, StoreTaken, UnsafeFile
from tests.heads.store.store_support import TRUNK, activate, blob, push


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.disarm()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HeadStore]:
    with HeadStore.open(tmp_path / "store", TRUNK) as opened:
        activate(opened, {name: push(opened, name, f"{name} 1") for name in ("policy", "value")})
        yield opened


def replace_lock(store: HeadStore) -> None:
    """What rsync and a restore do: the same content in a new file."""
    lock = Path(store.path) / "LOCK"
    shutil.copy(lock, lock.with_suffix(".new"))
    os.replace(lock.with_suffix(".new"), lock)


def write_in_place(path: Path, data: bytes) -> None:
    """Other bytes in the same file; its ctime is another one, however coarse the clock."""
    before = path.stat().st_ctime_ns
    path.write_bytes(data)
    while path.stat().st_ctime_ns == before:
        path.touch()


def rot(store: HeadStore, name: str, version: int) -> Path:
    path = Path(store.path) / "blobs" / store.get(name, version).blob
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    write_in_place(path, bytes(data))
    return path


# ---- two servers


def test_two_servers_on_one_store_do_not_both_make_a_generation(store: HeadStore) -> None:
    """With a new lock file a second server opened the store, and both acknowledged generation 2."""
    version = push(store, "policy", "policy 2")
    replace_lock(store)
    with HeadStore.open(store.path, TRUNK) as second:
        changes = (
            lambda: activate(store, {"policy": version, "value": 1}),
            lambda: push(store, "policy", "policy 3"),
            lambda: store.label("policy", 1, add=["best"]),
            lambda: store.delete_version("policy", version),
        )
        for change in changes:
            with pytest.raises(StoreTaken, match="lock file was replaced"):
                change()
        assert activate(second, {"policy": version, "value": 1}).number == 2
        assert second.get("policy", version).labels == ()
    store.check_folder()
    assert store.restart_damage is not None
    assert "lock file" in store.restart_damage.what


def test_a_commit_never_replaces_a_record(store: HeadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the lock and the rename another server may commit: the rename finds its record, and nothing is changed."""
    path = Path(store.path) / "generations" / "2.json"
    path.write_bytes(b"another server's")
    with pytest.raises(StoreTaken, match="another server"):
        activate(store, {"policy": 1})
    (Path(store.path) / "versions" / "policy" / "2.json").write_bytes(b"another server's")
    with pytest.raises(StoreTaken, match="another server"):
        push(store, "policy", "policy 2")
    assert path.read_bytes() == b"another server's"
    assert (Path(store.path) / "versions" / "policy" / "2.json").read_bytes() == b"another server's"
    assert store.current is not None
    assert store.current.number == 1
    assert not list((Path(store.path) / "staging").iterdir())


@pytest.mark.parametrize("has_call", [True, False])
def test_a_rename_that_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_call: bool) -> None:
    if not has_call:
        monkeypatch.setattr("polyhead.heads.store.rename_new._renameat2", lambda: None)
    for name in ("a", "b", "taken"):
        (tmp_path / name).write_text(name)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        rename_new(folder, "a", folder, "new")
        with pytest.raises(FileExistsError):
            rename_new(folder, "b", folder, "taken")
        with pytest.raises(FileNotFoundError):
            rename_new(folder, "nothing", folder, "other")
    finally:
        os.close(folder)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new": "a", "b": "b", "taken": "taken"}


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_folder_that_is_gone_is_noticed(store: HeadStore, is_replaced: bool) -> None:
    store.check_folder()
    assert store.restart_damage is None
    shutil.move(store.path, store.path + ".old")
    if is_replaced:
        shutil.copytree(store.path + ".old", store.path)
    store.check_folder()
    assert store.restart_damage is not None
    with pytest.raises(StoreTaken, match="folder was moved"):
        push(store, "policy", "policy 2")
    shutil.rmtree(store.path, ignore_errors=True)
    shutil.move(store.path + ".old", store.path)
    store.check_folder()
    assert store.restart_damage is None, "it was put back"
    assert push(store, "policy", "policy 2") == 2


def test_a_deleted_folder_leaves_sizes_that_can_be_asked_for(store: HeadStore) -> None:
    """status and metrics failed while health said SERVING."""
    shutil.rmtree(store.path)
    store.check_folder()
    assert store.restart_damage is not None
    assert store.disk_bytes() == 0
    assert min(store.disk_space()) > 0


# ---- rotten files


def test_a_corrupt_file_cannot_be_activated(store: HeadStore) -> None:
    """Only its size was looked at, and the restart after such an activation was NOT_SERVING."""
    version = push(store, "policy", "policy 2")
    path = rot(store, "policy", version)
    with pytest.raises(DataLoss, match="push the same head again"):
        activate(store, {"policy": version})
    store.put_blob(blob("policy 2"))
    assert activate(store, {"policy": version}).number == 2
    assert path.read_bytes() == blob("policy 2")


def test_a_file_is_read_once_as_long_as_it_stays_the_same(store: HeadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    version = push(store, "policy", "policy 2")
    reads: list[str] = []
    real = store._blobs._hashed
    monkeypatch.setattr(store._blobs, "_hashed", lambda digest, read: reads.append(digest) or real(digest, read))
    activate(store, {"policy": version})
    assert reads == [], "its bytes were hashed as they came"
    path = Path(store.path) / "blobs" / store.get("policy", version).blob
    write_in_place(path, path.read_bytes())
    activate(store, {"policy": version})
    activate(store, {"policy": version})
    assert reads == [path.name]


def run_scrub(store: HeadStore) -> int:
    """One pass; the slices."""
    slices = 0
    while store.scrub.step():
        slices += 1
    return slices


def test_a_scrub_finds_what_nobody_reads(store: HeadStore) -> None:
    push(store, "policy", "", data=bytes(SLICE_BYTES * 2 + 5))
    push(store, "policy", "policy 3")
    assert run_scrub(store) == 3 + 1 + 3 * 2, "slices, and one look at each file's end"
    store.check_folder()
    assert store.other_damage == ()
    rot(store, "policy", 2)
    rot(store, "policy", 1)
    run_scrub(store)
    store.check_folder()
    assert ["policy@1" in store.other_damage[0].what, "policy@2" in store.other_damage[1].what] == [True, True]
    assert "served from memory" in store.other_damage[0].what
    assert store.other_damage[1].repair.startswith("polyhead heads delete policy@2")
    assert [past.gone for past in store.past(store.history())] == [("policy@1",)]
    assert store.damage is None, "the active set is still served"
    store.put_blob(blob("policy 1"))
    store.delete_version("policy", 2)
    store.check_folder()
    assert store.other_damage == ()


def test_a_scrub_minds_no_deletion(store: HeadStore) -> None:
    version = push(store, "policy", "", data=bytes(SLICE_BYTES * 2))
    while store.scrub._reading is None or store.scrub._reading.digest != store.get("policy", version).blob:
        store.scrub.step()
    store.delete_version("policy", version)
    run_scrub(store)
    store.check_folder()
    assert store.other_damage == ()
    shutil.rmtree(store.path)
    with pytest.raises(PolyheadError):
        store.scrub.step()


# ---- a full disk


def test_the_way_out_of_a_full_disk(store: HeadStore) -> None:
    """`heads delete` of the newest version writes down its number first: on a full disk it failed, and so did taking a label away."""
    version = push(store, "policy", "policy 2")
    store.label("policy", version, add=["best"])
    failpoints.arm("before_label_write", "ENOSPC")
    store.label("policy", version, remove=["best"])
    failpoints.arm("before_high_water_write", "ENOSPC")
    store.delete_version("policy", version)
    assert (Path(store.path) / "RESERVE").stat().st_size > 0, "made again from what became free"
    assert push(store, "policy", "policy 3") == version + 1


def test_a_reserve_that_was_given_up_comes_back_with_the_next_deletion(store: HeadStore) -> None:
    version = push(store, "policy", "policy 2")
    failpoints.arm("before_reserve_write", "ENOSPC")
    failpoints.arm("before_generation_write", "ENOSPC")
    activate(store, {"policy": version})
    assert not (Path(store.path) / "RESERVE").exists()
    push(store, "policy", "policy 3")
    store.delete_version("policy", 3)
    assert (Path(store.path) / "RESERVE").exists()


def test_a_full_disk_is_no_reason_to_wait_and_names_the_way_out(store: HeadStore) -> None:
    failpoints.arm("before_blob_write", "ENOSPC*")
    with pytest.raises(ResourceExhausted, match="heads delete") as caught:
        push(store, "policy", "policy 2")
    assert caught.value.retry_after_s is None, "a client that waits for a retry hangs without a word"
    assert io_errors.FULL_HINT in caught.value.message


@pytest.mark.parametrize("is_link", [True, False])
def test_a_store_that_is_no_folder_is_not_called_another_servers(tmp_path: Path, is_link: bool) -> None:
    """`--store /dev/null` said that another server writes to the store."""
    path = tmp_path / "store"
    if is_link:
        path.symlink_to(tmp_path / "nothing")
    else:
        path.touch()
    with pytest.raises(UnsafeFile, match="no folder but something else stands at its place"):
        HeadStore.open(path, TRUNK)
