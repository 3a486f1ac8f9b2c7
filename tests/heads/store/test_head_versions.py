"""Pushes and versions while nothing crashes: what is stored, under which number, and which names and sizes are refused."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from polyhead.heads.format.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from polyhead.heads.store.store import HeadStore
from tests.guards.tree import ROOT
from tests.heads.store.store_support import TRUNK, activate, assert_no_leftovers, assert_restarts_equal, blob, manifest, push

BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "/abs", "a\\b", "a\0b", "%2e%2e", "con/..", "-x", ".x", "x..y", "A", "ä", "a b", "a\n",
    "a" * 65, "a" * 300, "policy/", "x:y", "\u2024\u2024/", "policy@1", "\udc80",
]  # fmt: skip



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
