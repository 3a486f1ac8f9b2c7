"""kill -9, failing system calls and torn files: exactly the old or exactly the new active set, every acknowledgement kept."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyhead.heads.format.errors import DataLoss, PolyheadError, ResourceExhausted
from polyhead.heads.store import failpoints, records
from polyhead.heads.store.pack import Retention
from polyhead.heads.store.rename_new import rename_new
from polyhead.heads.store.store import CommitUncertain, HeadStore, StoreIoError
from tests.heads.store.store_support import (
    RAM,
    TRUNK,
    activate,
    active_labels,
    assert_no_leftovers,
    blob,
    head_file,
    push,
    push_delta,
    run_child,
    start_child,
)

OLD = {"policy": blob("policy 1"), "value": blob("value 1")}
NEW = {"policy": blob("policy 2"), "value": blob("value 2")}


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.disarm()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=RAM) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """A store with one acknowledged generation."""
    with tempfile.TemporaryDirectory(dir=RAM) as name:
        folder = Path(name) / "store"
        with HeadStore.open(folder, TRUNK) as store:
            activate(store, {name: push(store, name, f"{name} 1") for name in ("policy", "value")})
        yield folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "store"))


def is_killed(child: subprocess.CompletedProcess[str]) -> bool:
    return child.returncode == -signal.SIGKILL


# ---- kill -9


@pytest.mark.parametrize("visit", [1, 2])
@pytest.mark.parametrize("name", failpoints.STEPS)
def test_kill_at_every_step(folder: Path, name: str, visit: int) -> None:
    """K01: killed at the first visit (old set or nothing new) and at a later one."""
    previous = 1
    if name.startswith(("before_name_", "after_name_")):  # a head name gets its folder only once
        shutil.rmtree(folder)
        previous = 0
    child = run_child(folder, f"{name}:kill@{visit}", "2")
    assert is_killed(child), f"{name} was never visited: {child.stderr}"
    acknowledged = max([int(number) for number in re.findall(r"ack (\d+)", child.stdout)], default=previous)
    with HeadStore.open(folder, TRUNK) as store:
        assert store.damage is None
        assert store.other_damage == ()
        number = store.current.number if store.current else 0
        assert number in (acknowledged, acknowledged + 1)
        assert [record.number for record in store.history()] in (list(range(number, first, -1)) for first in range(max(number, 1)))
        expected = {head: blob(f"{head} {number}") for head in ("policy", "value")} if number else {}
        assert active_labels(store) == expected
        assert push(store, "policy", "after the crash") > 0
    assert_no_leftovers(folder)


def test_every_step_in_the_order_that_survives_a_power_cut(tmp_path: Path) -> None:
    """A store without fsync passes kill -9: the record of system calls shows that nothing is acknowledged too early."""
    record: list[tuple[str, str]] = []
    with HeadStore.open(tmp_path / "store", TRUNK, os_record=record) as store:
        start = len(record)
        version = push(store, "policy", "weights")
        pushed = record[start:]
        start = len(record)
        activate(store, {"policy": version})
        activated = record[start:]
    digest = store_digest(tmp_path / "store")
    changes = [(op, re.sub(r"staging/.*", "staging/*", name)) for op, name in pushed if op not in ("open", "write", "list")]
    assert changes == [
        ("fsync", "staging/*"),
        ("rename", f"blobs/{digest}"),
        ("fsync_folder", "blobs"),
        ("mkdir", "versions/policy"),
        ("fsync_folder", "versions"),
        ("fsync", "staging/*"),
        ("rename", "versions/policy/1.json"),
        ("fsync_folder", "versions/policy"),
    ]
    changes = [(op, re.sub(r"staging/.*", "staging/*", name)) for op, name in activated]
    assert changes == [
        ("open", "staging/*"),
        ("write", "staging/*"),
        ("fsync", "staging/*"),
        ("rename", "generations/1.json"),
        ("fsync_folder", "generations"),
    ]


def test_the_record_does_not_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each recorded fsync and rename is a real one; all else here only reads the record."""
    record: list[tuple[str, str]] = []
    for place, call in (("os.fsync", "fsync"), ("os.rename", "rename"), ("polyhead.heads.store.osio.rename_new", "rename")):
        real = {"os.fsync": os.fsync, "os.rename": os.rename}.get(place, rename_new)

        def recorded(*arguments: object, call: str = call, real: Callable[..., None] = real, **options: object) -> None:
            record.append(("real", call))
            real(*arguments, **options)

        monkeypatch.setattr(place, recorded)
    with HeadStore.open(tmp_path / "store", TRUNK, os_record=record) as store:
        activate(store, {"policy": push(store, "policy", 1)})
    pairs = itertools.pairwise([("", ""), *record])
    claims = [(before, op) for before, (op, _) in pairs if op in ("fsync", "fsync_folder", "rename")]
    assert len(claims) > 15
    assert all(before == ("real", op.removesuffix("_folder")) for before, op in claims)


def store_digest(folder: Path) -> str:
    return next((folder / "blobs").iterdir()).name


@pytest.mark.parametrize("name", failpoints.RECOVERY_NEW)
def test_kill_while_a_store_is_created_twice(tmp_path: Path, name: str) -> None:
    """K03: the third start succeeds."""
    folder = tmp_path / "store"
    assert is_killed(run_child(folder, f"{name}:kill"))
    again = run_child(folder, f"{name}:kill")
    if not is_killed(again):  # that step was done for good by the first start
        assert "ack 1" in again.stdout, again.stderr
    third = run_child(folder)
    assert "ack" in third.stdout, third.stderr
    assert_no_leftovers(folder)


@pytest.mark.parametrize("name", failpoints.RECOVERY_CLEAN)
def test_kill_during_recovery_twice(folder: Path, name: str) -> None:
    """K03: a crash left three staged files and three orphans; two recoveries are killed among them; the third ends the job."""
    for number in range(3):
        (folder / "staging" / f"{number:032x}").write_bytes(b"left by a crash")
        (folder / "blobs" / f"{number:064x}").write_bytes(b"no version refers to it")
    for _ in range(2):
        assert is_killed(run_child(folder, f"{name}:kill"))
    with HeadStore.open(folder, TRUNK) as store:
        assert active_labels(store) == OLD
    assert_no_leftovers(folder)


def test_a_start_makes_durable_what_it_found(folder: Path) -> None:
    """A process killed between rename and fsync of the folder leaves a record that a power cut could still take back."""
    record: list[tuple[str, str]] = []
    HeadStore.open(folder, TRUNK, os_record=record).close()
    synced = [name for op, name in record if op == "fsync_folder"]
    assert synced == ["", "blobs", "versions", "versions/policy", "versions/value", "generations"]


def test_kills_at_random_times(tmp_path: Path) -> None:
    """K02: a child under load is killed again and again; no acknowledged activation is ever lost."""
    folder = tmp_path / "store"
    acknowledged = 0
    rng = random.Random(0)
    for _ in range(10):
        child = start_child(folder, "100000")
        assert child.stdout is not None
        assert child.stdout.readline() == "opened\n"
        time.sleep(rng.uniform(0, 0.2))
        child.kill()
        output, _ = child.communicate(timeout=30)
        acknowledged = max([acknowledged, *(int(number) for number in re.findall(r"ack (\d+)\n", output))])
        with HeadStore.open(folder, TRUNK) as store:
            assert store.damage is None
            number = store.current.number if store.current else 0
            assert number in (acknowledged, acknowledged + 1)
            acknowledged = number
            assert active_labels(store) == ({head: blob(f"{head} {number}") for head in OLD} if number else {})
    assert acknowledged > 10
    assert_no_leftovers(folder)


# ---- failing system calls


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE", "EINTR"])
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


def push_and_activate(store: HeadStore) -> None:
    activate(store, {name: push(store, name, f"{name} 2") for name in ("policy", "value")})


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


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("name", failpoints.STEPS)
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


# ---- torn and damaged files


def test_a_generation_torn_at_every_byte(folder: Path) -> None:
    """K08: never the older policy without a word, and the command that repairs it works."""
    with HeadStore.open(folder, TRUNK) as store:
        push_and_activate(store)
    path = folder / "generations" / "2.json"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with HeadStore.open(folder, TRUNK) as store:
            assert store.damage is not None, length
            assert store.damage.repair == f"polyhead heads rollback --to 1 --store {folder}"
            with pytest.raises(DataLoss):
                _ = store.current
    path.write_bytes(whole)
    with HeadStore.open(folder, TRUNK) as store:
        assert store.damage is None
    path.write_bytes(whole[:-1])
    with HeadStore.open(folder, TRUNK) as store:
        assert store.repair_to(1).number == 3
        assert active_labels(store) == OLD
    with HeadStore.open(folder, TRUNK) as store:
        assert active_labels(store) == OLD
        assert [damage.what for damage in store.other_damage] == ["generation 2: the generation record is torn or damaged"]


def test_a_generation_with_any_bit_flipped(folder: Path) -> None:
    path = folder / "generations" / "1.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        if re.search(rb'"format":[2-9]', flipped):  # reads like a record from the future
            with pytest.raises(PolyheadError, match="newer"):
                HeadStore.open(folder, TRUNK)
            continue
        with HeadStore.open(folder, TRUNK) as store:
            assert store.damage is not None, bit
            assert store.damage.repair.startswith("polyhead heads rollback --to 0 --store ")


GARBAGE = [b"", b"\0" * 300, b"{}", b"null\n", b"[" * 5000, b"\xff" * 50, b'{"format":1}', b"9" * 9000]


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_records_are_reported(folder: Path, content: bytes) -> None:
    for path in (folder / "generations" / "1.json", folder / "versions" / "policy" / "1.json"):
        whole = path.read_bytes()
        path.write_bytes(content)
        with HeadStore.open(folder, TRUNK) as store:
            assert store.damage is not None
            assert "generation 1" in store.damage.what
        path.write_bytes(whole)


def test_a_record_of_another_number_is_damaged(folder: Path) -> None:
    shutil.copy(folder / "generations" / "1.json", folder / "generations" / "2.json")
    with HeadStore.open(folder, TRUNK) as store:
        assert store.damage is not None


def test_a_newer_format_is_refused(folder: Path) -> None:
    path = folder / "generations" / "1.json"
    path.write_bytes(path.read_bytes().replace(f'"format":{records.FORMAT}'.encode(), b'"format":2'))
    with pytest.raises(PolyheadError, match="newer polyhead"):
        HeadStore.open(folder, TRUNK)


def test_bits_flipped_in_a_blob(folder: Path) -> None:
    """K07: found by the SHA-256 whenever it is read, and before serving by verify_active."""
    with HeadStore.open(folder, TRUNK) as store:
        digest = store.get("policy", 1).digest
        assert store.verify_active() is None
        path = folder / "blobs" / digest
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 8 * len(whole) // 200 + 1):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(DataLoss):
                store.read_blob(digest)
        damage = store.verify_active()
        assert damage is not None
        assert "policy@1" in damage.what
        assert damage.repair.startswith("polyhead heads rollback --to 0 ")  # the only other set is "none"
        store.put_blob(whole)  # pushing the same head again repairs it
        assert store.verify_active() is None
        assert active_labels(store) == OLD


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_truncated_or_missing_blob_is_found_at_open(folder: Path, length: int) -> None:
    with HeadStore.open(folder, TRUNK) as store:
        path = folder / "blobs" / store.get("policy", 1).digest
    path.write_bytes(path.read_bytes()[:length])
    with HeadStore.open(folder, TRUNK) as store:
        assert store.damage is not None
        assert f"{length} bytes" in store.damage.what
    path.unlink()
    with HeadStore.open(folder, TRUNK) as store:
        assert store.damage is not None
        assert "missing" in store.damage.what


def test_a_blob_changed_on_disk_does_not_reach_what_was_read(folder: Path) -> None:
    """K09: a mapped file would change under the server, or kill it."""
    with HeadStore.open(folder, TRUNK) as store:
        data = store.read_blob(store.get("policy", 1).digest)
        (folder / "blobs" / store.get("policy", 1).digest).write_bytes(b"")
        assert data == OLD["policy"]
