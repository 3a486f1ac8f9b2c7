"""kill -9 at every step: exactly the old or exactly the new active set, every acknowledgement kept."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from polyhead.heads.store import failpoints
from polyhead.heads.store.rename_new import rename_new
from polyhead.heads.store.store import HeadStore
from tests.cases import in_turn
from tests.heads.store.store_support import (
    OLD,
    TRUNK,
    activate,
    active_labels,
    assert_no_leftovers,
    blob,
    push,
    run_child,
    start_child,
)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "store"))


def is_killed(child: subprocess.CompletedProcess[str]) -> bool:
    return child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("name", "visit"), in_turn(failpoints.STEPS, [1, 2]))
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
    for _ in range(6):
        child = start_child(folder, "100000")
        assert child.stdout is not None
        assert child.stdout.readline() == "opened\n"
        before = "".join(child.stdout.readline() for _ in range(rng.randrange(1, 5)))
        time.sleep(rng.uniform(0, 0.02))
        child.kill()
        output, _ = child.communicate(timeout=30)
        acknowledged = max([acknowledged, *(int(number) for number in re.findall(r"ack (\d+)\n", before + output))])
        with HeadStore.open(folder, TRUNK) as store:
            assert store.damage is None
            number = store.current.number if store.current else 0
            assert number in (acknowledged, acknowledged + 1)
            acknowledged = number
            assert active_labels(store) == ({head: blob(f"{head} {number}") for head in OLD} if number else {})
    assert acknowledged > 5
    assert_no_leftovers(folder)
