"""Old generations are packed into one file and dropped at last; numbers, request ids and the hash chain outlive their files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from polyhead.heads.format.errors import NotFound
from polyhead.heads.store import pack, records
from polyhead.heads.store.pack import Retention
from polyhead.heads.store.records import GenerationRecord
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import TRUNK, push

FEW = Retention(max_files=4, num_files=2, num_generations=4, seconds=1000.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve generations, each with a request id; the policies 1 and 2 by turns."""
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        for label in (1, 2):
            push(store, "policy", label)
        for number in range(1, 13):
            commit(store, number)
    return tmp_path / "store"


def commit(store: HeadStore, number: int) -> GenerationRecord:
    heads = {"policy": 1 + number % 2}
    return store.commit_generation(heads, parent=number - 1 or None, request_id=f"r{number}", request_digest=f"{number:064x}")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "generations").iterdir())


def assert_chained(history: list[GenerationRecord], before: str = "") -> None:
    """Each record names the bytes of the one before: whose chain holds another history has another past."""
    for record in reversed(history):
        assert record.previous == before, record.number
        before = records.sha256_of(record)


def test_packed_generations_are_as_they_were(folder: Path) -> None:
    with HeadStore.open(folder, TRUNK) as store:
        before = store.history()
        assert store.compact(FEW) == 10
        assert store.compact(FEW) == 0
        assert store.history() == before
    assert files(folder) == ["11.json", "12.json", "PACK"]
    with HeadStore.open(folder, TRUNK) as store:
        assert store.history() == before
        assert store.current == before[0]
        assert_chained(before)
        assert store.generation_of_request("r3") == store.generation(3)
        assert [past.same_as for past in store.past(before[-3:])] == [1, 0, 0]
        assert commit(store, 13).previous == records.sha256_of(before[0])
        assert commit(store, 3).number == 3, "a late retry gets its first answer"


def test_a_start_opens_few_files(folder: Path) -> None:
    """40 000 generations made a start take 6.4 s: each was a file."""
    calls: list[tuple[str, str]] = []
    with HeadStore.open(folder, TRUNK) as store:
        store.compact(FEW)
    HeadStore.open(folder, TRUNK, os_record=calls).close()
    assert sum(op == "open" and name.startswith("generations/") for op, name in calls) == 3


def test_what_is_too_old_is_dropped_but_never_the_newest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("polyhead.heads.store.active_set.time.time", lambda: now + 1001)
    with HeadStore.open(folder, TRUNK) as store:
        eighth = records.sha256_of(store.generation(8))
        store.compact(FEW)
        assert [record.number for record in store.history()] == [12, 11, 10, 9]
        with pytest.raises(NotFound, match="generation 7 is no longer kept: the history begins with 9"):
            store.generation(7)
        assert store.generation_of_request("r7") is None
        assert [past.same_as for past in store.past(store.history())] == [10, 9, 0, 0]
    with HeadStore.open(folder, TRUNK) as store:
        assert [record.number for record in store.history()] == [12, 11, 10, 9]
        assert_chained(store.history(), before=eighth)
        assert commit(store, 13).number == 13
        with pytest.raises(NotFound, match="no longer kept"):
            store.generation(8)


def test_the_history_is_bounded_in_number_and_in_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HeadStore.open(folder, TRUNK) as store:
        store.compact(Retention(max_files=4, num_files=2, num_generations=4, max_generations=3))
        assert [record.number for record in store.history()] == [12, 11, 10, 9, 8]
        for number in (13, 14, 15):
            commit(store, number)
        monkeypatch.setattr(pack, "MAX_PACK_BYTES", 1)
        store.compact(FEW)
        assert [record.number for record in store.history()] == [15, 14]


def test_files_that_a_crash_left_beside_their_pack_go(folder: Path) -> None:
    kept = {path.name: path.read_bytes() for path in (folder / "generations").iterdir()}
    with HeadStore.open(folder, TRUNK) as store:
        before = store.history()
        store.compact(FEW)
    for name in ("3.json", "4.json", "5.json"):
        (folder / "generations" / name).write_bytes(kept[name] if name != "4.json" else b"torn")
    with HeadStore.open(folder, TRUNK) as store:
        assert store.history() == before
        assert store.other_damage == ()
        assert store.compact(FEW) == 3
    assert files(folder) == ["11.json", "12.json", "PACK"]


@pytest.mark.parametrize("cut", [0, 1, 60, -1])
def test_a_damaged_pack_is_said_and_the_active_set_is_served(folder: Path, cut: int) -> None:
    with HeadStore.open(folder, TRUNK) as store:
        store.compact(FEW)
    packed = folder / "generations" / "PACK"
    whole = packed.read_bytes()
    packed.write_bytes(whole[:cut])
    with HeadStore.open(folder, TRUNK) as store:
        assert store.damage is None
        assert store.current is not None
        assert store.current.number == 12
        assert [damage.repair for damage in store.other_damage] == [f"rm {packed}"]
        for number in (13, 14, 15):
            commit(store, number)
        assert store.compact(FEW) == 0, "it is left for whoever repairs it"
    packed.write_bytes(whole)
    with HeadStore.open(folder, TRUNK) as store:
        assert store.other_damage == ()
        assert [record.number for record in store.history()] == list(range(15, 0, -1))


def test_a_pack_with_any_byte_changed_is_damaged(folder: Path) -> None:
    with HeadStore.open(folder, TRUNK) as store:
        store.compact(FEW)
    whole = (folder / "generations" / "PACK").read_bytes()
    for index in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[index] ^= 2
        with pytest.raises((records.DamagedRecord, pack.FailedPrecondition)):
            pack.decode(bytes(changed))
