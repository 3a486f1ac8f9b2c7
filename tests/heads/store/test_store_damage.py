"""Torn and damaged files: found, said, never served; and the command that repairs works."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from polyhead.heads.format.errors import DataLoss, PolyheadError
from polyhead.heads.store import records
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import (
    OLD,
    TRUNK,
    active_labels,
    push_and_activate,
)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "store"))


def test_a_generation_torn_anywhere(folder: Path) -> None:
    """K08: never the older policy without a word, and the command that repairs it works."""
    with HeadStore.open(folder, TRUNK) as store:
        push_and_activate(store)
    path = folder / "generations" / "2.json"
    whole = path.read_bytes()
    for length in range(0, len(whole), 3):
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


def test_a_generation_with_a_bit_flipped_anywhere(folder: Path) -> None:
    path = folder / "generations" / "1.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 11):  # each place within a byte has its turn
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
