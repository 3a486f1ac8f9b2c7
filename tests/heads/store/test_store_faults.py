"""Failing system calls: a clean error and nothing half done, or an end of the process and a restart that decides."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from polyhead.heads.format.errors import PolyheadError, ResourceExhausted
from polyhead.heads.store import failpoints
from polyhead.heads.store.pack import Retention
from polyhead.heads.store.store import CommitUncertain, HeadStore, StoreIoError
from tests.cases import in_turn
from tests.heads.store.store_support import (
    NEW,
    OLD,
    TRUNK,
    activate,
    active_labels,
    assert_no_leftovers,
    head_file,
    push,
    push_and_activate,
    push_delta,
)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "store"))


SELDOM = [pytest.param(error, marks=pytest.mark.long) for error in ("EDQUOT", "EROFS", "EMFILE")]


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EINTR", *SELDOM])
def test_every_call_fails_once(prepared: Path, tmp_path: Path, error: str) -> None:
    """K04: the Nth call of a push and an activation fails. A clean error or success; the next try works; nothing half done."""
    call = 0
    is_reached = True
    while is_reached:
        call += 1
        folder = Path(shutil.copytree(prepared, tmp_path / f"store{call}"))
        with HeadStore.open(folder, TRUNK) as store:
            failpoints.arm(f"call.{call}", error)
            failure = try_to(store, push_and_activate)
            if failure and not isinstance(failure, CommitUncertain):  # there the process would end, and the restart decides
                assert str(folder) not in failure.message
                assert active_labels(store) == OLD
                assert not list((folder / "staging").iterdir()), f"call {call} left a staged file"
                failpoints.disarm()
                push_and_activate(store)
            is_reached = not failpoints.is_armed()
            failpoints.disarm()
        with HeadStore.open(folder, TRUNK) as store:
            assert store.damage is None
            assert active_labels(store) in (OLD, NEW)
        assert_no_leftovers(folder)
        shutil.rmtree(folder)
    assert call > 20


def push_activate_and_delete(store: HeadStore) -> None:
    push(store, "new", "a name of its own")
    push(store, "delta", "", data=head_file(a=1, b=2))
    push_delta(store, "delta", store.versions("delta")[-1].version, {"b": 3})
    push_and_activate(store)
    store.label("new", 1, add=["best"])
    store.label("new", 1, remove=["best"])
    store.delete_version("new", 1)
    store.compact(Retention(max_files=1, num_files=1, num_generations=1, seconds=3600.0))


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_every_call_of_a_delta_fails_once(tmp_path: Path, error: str) -> None:
    """No version, no leftover, and the next try works; the base is as it was."""
    call, is_reached = 0, True
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        base = push(store, "delta", "", data=head_file(a=1, b=2))
        while is_reached:
            call += 1
            failpoints.arm(f"call.{call}", error)
            known, staged = store.versions("delta"), list((tmp_path / "store" / "staging").iterdir())
            failure = try_to(store, lambda store: push_delta(store, "delta", base, {"b": 3}))
            is_reached = not failpoints.is_armed()
            failpoints.disarm()
            if failure:
                assert store.versions("delta") == known
                assert list((tmp_path / "store" / "staging").iterdir()) == staged, f"call {call} left a staged file"
            made = push_delta(store, "delta", base, {"b": 3})
            assert store.read_blob(store.get("delta", made).blob) == head_file(a=1, b=3)
            assert store.read_blob(store.get("delta", base).blob) == head_file(a=1, b=2)
    assert call > 10
    HeadStore.open(tmp_path / "store", TRUNK).close()  # takes away what could not be unlinked
    assert_no_leftovers(tmp_path / "store")


def try_to(store: HeadStore, act: Callable[[HeadStore], object]) -> PolyheadError | None:
    """The error; any other than a PolyheadError fails the test."""
    try:
        act(store)
    except PolyheadError as failure:
        return failure
    return None


@pytest.mark.parametrize(("name", "error"), in_turn(failpoints.STEPS, ["EIO", "ENOSPC"]))
def test_an_error_at_every_step(folder: Path, name: str, error: str) -> None:
    """An `after_` point is a call that worked and reports failure: what it did must not stay behind half owned."""
    with HeadStore.open(folder, TRUNK) as store:
        failpoints.arm(name, error)
        failure = try_to(store, push_activate_and_delete)
        if isinstance(failure, CommitUncertain):
            assert "generation" in name
        elif failure:
            assert isinstance(failure, StoreIoError if error == "EIO" else ResourceExhausted)
            failpoints.disarm()
            push_and_activate(store)
        known = [store.versions(head) for head in store.names()]
        history = store.history()
    with HeadStore.open(folder, TRUNK) as store:
        assert store.damage is None
        assert store.other_damage == ()
        assert [store.versions(head) for head in store.names()] == known
        assert active_labels(store) == NEW
        if failure is None or ("generation_dir" not in name and "generation_rename" not in name):
            assert store.history() == history
    assert_no_leftovers(folder)


def test_a_number_is_not_given_again_after_a_failed_push_and_a_deletion(folder: Path) -> None:
    """The push spent a higher number that has no record: deleting the newest version wrote nothing down, and its number came again."""
    with HeadStore.open(folder, TRUNK) as store:
        assert [push(store, "snapshot", label) for label in ("first", "second")] == [1, 2]
        failpoints.arm("before_version_write", "ENOSPC")
        with pytest.raises(ResourceExhausted):
            push(store, "snapshot", "third")
        store.delete_version("snapshot", 2)
    with HeadStore.open(folder, TRUNK) as store:
        assert push(store, "snapshot", "next") > 2


@pytest.mark.parametrize("error", ["ENOSPC*", "EIO*"])
def test_every_call_fails_from_then_on(prepared: Path, tmp_path: Path, error: str) -> None:
    """K04, persistent: the store on disk is whole whatever call was the last that worked."""
    for call in range(1, 40):
        folder = Path(shutil.copytree(prepared, tmp_path / f"store{call}"))
        with HeadStore.open(folder, TRUNK) as store:
            failpoints.arm(f"call.{call}", error)
            failure = try_to(store, push_and_activate)
            if failure and not isinstance(failure, CommitUncertain):
                assert store.current is not None
                assert store.current.number == 1
            failpoints.disarm()
        with HeadStore.open(folder, TRUNK) as store:
            assert store.damage is None
            assert active_labels(store) in (OLD, NEW)
        assert list((folder / "staging").iterdir()) == []
        shutil.rmtree(folder)


def test_a_file_whose_fsync_failed_is_never_fsynced_again(folder: Path) -> None:
    """After a failed fsync Linux marks the pages clean: a second fsync would report a success that never happened."""
    record: list[tuple[str, str]] = []
    with HeadStore.open(folder, TRUNK, os_record=record) as store:
        start = len(record)
        failpoints.arm("before_blob_fsync", "EIO")
        with pytest.raises(StoreIoError):
            push(store, "policy", "new")
        first = next(name for op, name in record[start:] if op == "write")
        assert ("unlink", first) in record
        push(store, "policy", "new")
    assert ("fsync", first) not in record


@pytest.mark.parametrize("name", ["after_generation_rename", "before_generation_dir_fsync", "after_generation_dir_fsync"])
def test_an_error_after_the_commit_point_is_uncertain(folder: Path, name: str) -> None:
    """Neither "done" nor "not done" would be true, so the server has to end; until then nothing else is committed."""
    with HeadStore.open(folder, TRUNK) as store:
        heads = {"policy": push(store, "policy", "policy 2"), "value": push(store, "value", "value 2")}
        failpoints.arm(name, "EIO")
        with pytest.raises(CommitUncertain):
            activate(store, heads)
        with pytest.raises(CommitUncertain):
            activate(store, heads)
    with HeadStore.open(folder, TRUNK) as store:
        assert active_labels(store) == NEW


def test_the_reserve_lets_an_activation_through_a_full_disk(folder: Path) -> None:
    """K06: when a bad policy is live and the disk is full, the good one must still be activable."""
    with HeadStore.open(folder, TRUNK) as store:
        heads = {"policy": push(store, "policy", "policy 2"), "value": push(store, "value", "value 2")}
        failpoints.arm("before_generation_write", "ENOSPC")
        record_before = (folder / "RESERVE").stat().st_ino
        assert activate(store, heads).number == 2
        assert (folder / "RESERVE").stat().st_ino != record_before  # given up, and made again once there was room
        failpoints.arm("before_generation_write", "ENOSPC*")
        with pytest.raises(ResourceExhausted):
            activate(store, heads)
        assert store.current is not None
        assert store.current.number == 2
