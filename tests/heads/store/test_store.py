"""What a store accepts when it is opened: permissions, locks, links, stray files. And many threads that use one store."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from polyhead.heads.format.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PolyheadError,
)
from polyhead.heads.store.store import HeadStore, StoreLocked, UnsafeFile
from tests.heads.store.store_support import TRUNK, activate, assert_no_leftovers, blob, push


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
