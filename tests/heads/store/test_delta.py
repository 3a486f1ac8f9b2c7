"""A file made of a base and of what changed: the same bytes as if all had been sent, whatever the layout of the base."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, InvalidArgument
from polyhead.heads.format.tensorfile import TensorData, canonical_bytes
from polyhead.heads.store import failpoints
from polyhead.heads.store.delta import SLICE_BYTES, hash_tensors
from polyhead.heads.store.store import HeadStore, StoreIoError
from tests.heads.store.store_support import TRUNK, assert_no_leftovers, floats, head_file, manifest, push, push_delta

A, B, C = (floats(label) for label in "abc")
HALF = TensorData("BF16", (4, 8), bytes(range(64)))


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with HeadStore.open(tmp_path / "store", TRUNK) as opened:
        yield opened


def rebuilt(store: HeadStore, base: bytes, sent: bytes, *, num_bytes: int = 0, sha256: str = "") -> bytes:
    with (
        store.open_blob(store.get("head", push(store, "head", "", data=base)).blob) as file,
        store.begin_push(len(sent), hashlib.sha256(sent).hexdigest()) as staging,
    ):
        staging.write(sent)
        with store.rebuild(file, staging, num_bytes, sha256) as whole:
            return bytes(whole.read())


def test_any_subset_makes_the_file_that_a_whole_push_makes(store: HeadStore) -> None:
    old = {"z": HALF, "a": A, "m.b": B}
    new = {"z": TensorData("BF16", (4, 8), bytes(64)), "a": C, "m.b": A}
    for mask in range(1, 8):
        changed = {name: new[name] for index, name in enumerate(new) if mask >> index & 1}
        assert rebuilt(store, canonical_bytes(old), canonical_bytes(changed)) == canonical_bytes({**old, **changed})


def test_a_base_with_metadata_and_an_order_of_its_own_becomes_canonical(store: HeadStore) -> None:
    parts = {"b": B, "a": A}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, part in parts.items():
        header[name] = {"dtype": "F32", "shape": list(part.shape), "data_offsets": [offset, offset + len(part.data)]}
        offset += len(part.data)
    text = json.dumps(header).encode()
    base = len(text).to_bytes(8, "little") + text + bytes(B.data) + bytes(A.data)
    whole = canonical_bytes({"a": C, "b": B})
    assert rebuilt(store, base, canonical_bytes({"a": C}), num_bytes=len(whole), sha256=hashlib.sha256(whole).hexdigest()) == whole


def test_tensors_longer_than_a_slice(store: HeadStore) -> None:
    size = SLICE_BYTES // 4 + 104
    long = [TensorData("F32", (size,), hashlib.sha256(bytes([seed])).digest() * (size // 8)) for seed in range(3)]
    base = {"a": long[0], "b": long[1]}
    assert rebuilt(store, canonical_bytes(base), canonical_bytes({"b": long[2]})) == canonical_bytes({"a": long[0], "b": long[2]})
    with store.open_blob(store.versions("head")[0].blob) as file:
        assert [(each.name, each.sha256) for each in hash_tensors(file)] == [
            (name, hashlib.sha256(tensor.data).digest()) for name, tensor in base.items()
        ]


@pytest.mark.parametrize(
    ("sent", "declared", "error", "field"),
    [
        ({"x": A}, {}, FailedPrecondition, "data"),
        ({"a": HALF}, {}, FailedPrecondition, "data"),
        ({"a": TensorData("F32", (2, 160), A.data)}, {}, FailedPrecondition, "data"),
        ({"a": B}, {"num_bytes": 7}, InvalidArgument, "header.num_bytes"),
        ({"a": B}, {"sha256": "ab" * 32}, FailedPrecondition, "header.sha256"),
    ],
)
def test_what_does_not_fit_leaves_nothing(
    store: HeadStore, tmp_path: Path, sent: dict[str, TensorData], declared: dict[str, object], error: type, field: str
) -> None:
    with pytest.raises(error) as caught:
        rebuilt(store, canonical_bytes({"a": A, "b": B}), canonical_bytes(sent), **declared)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert not list((tmp_path / "store" / "staging").iterdir())


def test_what_was_sent_must_be_a_head_file(store: HeadStore) -> None:
    with pytest.raises(InvalidArgument, match="zip archive"):
        rebuilt(store, head_file(a=1), b"PK\x03\x04" + bytes(100))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:5], lambda data: data[:-1] + b"x", lambda data: b"{" + data[1:]]
)
@pytest.mark.parametrize("is_declared", [True, False])
def test_a_damaged_base_is_data_loss(store: HeadStore, tmp_path: Path, damage, is_declared: bool) -> None:  # type: ignore[no-untyped-def]
    version = push(store, "delta", "", data=head_file(a=1, b=2))
    path = tmp_path / "store" / "blobs" / store.get("delta", version).blob
    path.write_bytes(damage(path.read_bytes()))
    sent, whole = head_file(a=3), head_file(a=3, b=2)
    declared = (len(whole), hashlib.sha256(whole).hexdigest()) if is_declared else (0, "")
    with (
        store.open_blob(store.get("delta", version).blob) as file,
        store.begin_push(len(sent), hashlib.sha256(sent).hexdigest()) as staging,
    ):
        staging.write(sent)
        with pytest.raises(DataLoss):
            store.rebuild(file, staging, *declared)
    assert not list((tmp_path / "store" / "staging").iterdir())


def test_a_base_deleted_meanwhile_and_a_chain_of_deltas_without_their_bases(store: HeadStore, tmp_path: Path) -> None:
    versions = [push(store, "delta", "", data=head_file(a=0, b=0))]
    for number in range(1, 5):
        sent = head_file(b=number)
        with (
            store.open_blob(store.get("delta", versions[-1]).blob) as file,
            store.begin_push(len(sent), hashlib.sha256(sent).hexdigest()) as staging,
        ):
            store.delete_version("delta", versions[-1])
            staging.write(sent)
            with store.rebuild(file, staging) as whole:
                versions.append(store.add_version("delta", whole.finish(), manifest()).version)
    assert [record.version for record in store.versions("delta")] == [5]
    assert store.read_blob(store.get("delta", 5).blob) == head_file(a=0, b=4)
    store.close()
    assert_no_leftovers(tmp_path / "store")


def test_a_delta_that_changes_nothing_is_the_same_file(store: HeadStore) -> None:
    version = push(store, "delta", "", data=head_file(a=1, b=2))
    again = push_delta(store, "delta", version, {"b": 2})
    assert store.get("delta", again).digest == store.get("delta", version).digest


def test_rebuilding_counts_as_its_own_push(tmp_path: Path) -> None:
    """Four deltas at once need no more places than four whole pushes."""
    with HeadStore.open(tmp_path / "one", TRUNK, max_staged=1) as store:
        version = push(store, "delta", "", data=head_file(a=1, b=2))
        push_delta(store, "delta", version, {"b": 3})
        push_delta(store, "delta", version, {"b": 4})


# ---- made durable while it is checked


def test_bytes_are_made_durable_once_and_before_their_name(tmp_path: Path) -> None:
    record: list[tuple[str, str]] = []
    data = head_file(a=1)
    with HeadStore.open(tmp_path / "store", TRUNK, os_record=record) as store:
        start = len(record)
        with store.begin_push(len(data), hashlib.sha256(data).hexdigest()) as staging:
            staging.write(data)
            staging.begin_sync()
            assert staging.read() == data
            digest = staging.finish()
    calls = [(op, name.partition("/")[0]) for op, name in record[start:] if op in ("fsync", "rename", "fsync_folder")]
    assert calls == [("fsync", "staging"), ("rename", "blobs"), ("fsync_folder", "blobs")]
    assert digest == hashlib.sha256(data).hexdigest()


def test_a_failure_beside_is_the_failure_of_the_push(tmp_path: Path) -> None:
    """A file whose fsync failed is given up, and never fsynced again."""
    record: list[tuple[str, str]] = []
    data = head_file(a=1)
    with HeadStore.open(tmp_path / "store", TRUNK, os_record=record) as store:
        start = len(record)
        failpoints.arm("before_blob_fsync", "EIO")
        with store.begin_push(len(data), hashlib.sha256(data).hexdigest()) as staging:
            staging.write(data)
            staging.begin_sync()
            with pytest.raises(StoreIoError):
                staging.finish()
        assert not [op for op, _ in record[start:] if op in ("fsync", "rename")]
        assert not list((tmp_path / "store" / "staging").iterdir())
        assert push(store, "head", "", data=data) == 1


def test_a_push_that_is_given_up_waits_for_its_sync(tmp_path: Path) -> None:
    record: list[tuple[str, str]] = []
    with HeadStore.open(tmp_path / "store", TRUNK, os_record=record) as store:
        start = len(record)
        with store.begin_push(5, hashlib.sha256(b"hello").hexdigest()) as staging:
            staging.write(b"hello")
            staging.begin_sync()
        assert sorted(op for op, _ in record[start:] if op in ("fsync", "unlink", "rename")) == ["fsync", "unlink"]
        assert not list((tmp_path / "store" / "staging").iterdir())
