"""LoRA versions in the store: named by what they compute, and never left without the version that they are built on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyhead.heads.format.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PolyheadError
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.lora import LoraAdapter, adapted_digest
from polyhead.heads.store import failpoints
from polyhead.heads.store.records import VersionRecord, decode_version, encode_version
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import TRUNK, activate, blob, manifest, push

LORA = LoraAdapter(rank=2, alpha=4.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HeadStore]:
    with HeadStore.open(tmp_path / "store", TRUNK) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.disarm()


def push_adapter(store: HeadStore, name: str, label: object, base: str, lora: LoraAdapter = LORA, **fields: Any) -> VersionRecord:
    digest = store.put_blob(blob(label))
    try:
        return store.add_version(name, digest, manifest(lora=lora, base=base), **fields)
    except PolyheadError:
        store.discard_blob(digest)
        raise


def blobs(store: HeadStore) -> set[str]:
    return {path.name for path in (Path(store.path) / "blobs").iterdir()}


def assert_bases_are_there(store: HeadStore) -> None:
    for name in store.names():
        for record in store.versions(name):
            store.read_blob(record.blob)
            if record.manifest.lora is not None:
                assert store.read_blob(store.get(*record.manifest.base_version()).blob)


def test_a_record_names_what_is_computed(store: HeadStore) -> None:
    push(store, "policy", "base")
    record = push_adapter(store, "policy", "adapter", "policy@1", metrics={"loss": 0.5})
    sha256 = hashlib.sha256(blob("adapter")).hexdigest()
    assert record.blob == record.adapter_sha256 == sha256
    assert record.digest == adapted_digest(sha256, store.get("policy", 1).digest, LORA)
    assert store.read_blob(record.blob) == blob("adapter")
    assert decode_version(encode_version(record)) == record
    plain = store.get("policy", 1)
    assert (plain.blob, plain.adapter_sha256) == (plain.digest, "")
    assert b"adapter_sha256" not in encode_version(plain), "records of plain heads are as they were"


def test_one_file_at_two_scalings_is_stored_once_and_is_two_heads(store: HeadStore) -> None:
    push(store, "policy", "base")
    first = push_adapter(store, "policy", "adapter", "policy@1")
    second = push_adapter(store, "policy", "adapter", "policy@1", LoraAdapter(rank=2, alpha=8.0))
    assert first.digest != second.digest
    assert first.blob == second.blob
    assert len(blobs(store)) == 2
    store.delete_version("policy", first.version)
    assert store.read_blob(second.blob) == blob("adapter")
    store.delete_version("policy", second.version)
    assert blobs(store) == {store.get("policy", 1).digest}


@pytest.mark.parametrize(
    ("base", "changes", "error", "said"),
    [
        ("policy@9", {}, NotFound, "policy@9"),
        ("policy@2", {}, FailedPrecondition, "cannot be built on another one: policy@2\nhint: its own base is policy@1"),
        ("value@1", {}, FailedPrecondition, "output of its base: 'score', not 'tied'"),
        ("policy", {}, InvalidArgument, "built on a version"),
    ],
)
def test_a_base_that_cannot_be(store: HeadStore, base: str, changes: dict[str, Any], error: type[PolyheadError], said: str) -> None:
    push(store, "policy", "base")
    push_adapter(store, "policy", "adapter", "policy@1")
    score = manifest(kind=HeadKind.VALUE, output=OutputKind.SCORE)
    store.add_version("value", store.put_blob(blob("value")), score)
    before = blobs(store)
    with pytest.raises(error, match=said):
        push_adapter(store, "policy", "second", base)
    assert blobs(store) == before
    assert len(store.versions("policy")) == 2


def test_a_base_stays_while_it_is_needed(store: HeadStore) -> None:
    """Neither deleted, nor by force, nor collected; the dependants are named."""
    push(store, "policy", "base")
    for name in ("policy", "other"):
        push_adapter(store, name, f"adapter of {name}", "policy@1")
    for force in (False, True):
        with pytest.raises(FailedPrecondition, match=r"LoRA heads are built on: other@1, policy@2"):
            store.delete_version("policy", 1, force=force)
    push(store, "policy", "newer")
    assert [(record.name, record.version) for record in store.collect(1)] == [("policy", 2)]
    assert [record.version for record in store.versions("policy")] == [1, 3]
    store.delete_version("other", 1)
    assert [(record.name, record.version) for record in store.collect(1)] == [("policy", 1)]
    assert len(blobs(store)) == 1


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    with HeadStore.open(tmp_path / "s", TRUNK) as first:
        push(first, "policy", "base")
        record = push_adapter(first, "policy", "adapter", "policy@1", request_id="r", labels=["best"])
        activate(first, {"policy": 2})
    with HeadStore.open(tmp_path / "s", TRUNK) as second:
        assert second.damage is None
        assert second.verify_active() is None
        assert second.get("policy", 2) == record
        assert push_adapter(second, "policy", "adapter", "policy@1", request_id="r", labels=["best"]) == record
        with pytest.raises(AlreadyExists):
            push_adapter(second, "policy", "adapter", "policy@1", LoraAdapter(rank=2, alpha=9.0), request_id="r")
        assert len(blobs(second)) == 2
        with pytest.raises(FailedPrecondition, match="policy@2"):
            second.delete_version("policy", 1)
        assert second.label("policy", 2, add=["again"]).digest == record.digest


def test_a_damaged_base_damages_what_is_built_on_it(tmp_path: Path) -> None:
    with HeadStore.open(tmp_path / "s", TRUNK) as first:
        push(first, "policy", "base")
        push(first, "policy", "sound")
        push_adapter(first, "policy", "adapter", "policy@1")
        activate(first, {"policy": 2})
        activate(first, {"policy": 3})
        base = Path(first.path) / "blobs" / first.get("policy", 1).digest
    data = bytearray(base.read_bytes())
    data[-1] ^= 1
    base.write_bytes(data)
    with HeadStore.open(tmp_path / "s", TRUNK) as second:
        damage = second.verify_active()
        assert damage is not None
        assert "policy@3 is built on policy@1: the weights of policy@1 are damaged" in damage.what
        assert "rollback --to 1" in damage.repair
        assert second.repair_to(1).heads == {"policy": 2}
    base.unlink()
    with HeadStore.open(tmp_path / "s", TRUNK) as third:
        assert third.damage is None
        assert [each.repair.split()[3] for each in third.other_damage] == ["policy@1", "policy@3"]


@pytest.mark.parametrize("failpoint", [each for each in (*failpoints.PUSH, *failpoints.DELETE) if "_name_" not in each])
def test_an_error_at_any_step_leaves_no_adapter_without_its_base(tmp_path: Path, failpoint: str) -> None:
    """A failing system call while an adapter comes, goes, and takes its base with it."""
    with HeadStore.open(tmp_path / "s", TRUNK) as store:
        push(store, "policy", "base")
        for step in range(3):
            failpoints.arm(failpoint, "EIO")
            try:
                if step == 0:
                    push_adapter(store, "policy", "adapter", "policy@1")
                else:
                    store.delete_version("policy", 3 - step)
            except PolyheadError:
                pass
            failpoints.disarm()
            if "policy" in store.names():
                assert_bases_are_there(store)
    with HeadStore.open(tmp_path / "s", TRUNK) as again:
        assert again.damage is None
        assert again.other_damage == ()
        if "policy" in again.names():
            assert_bases_are_there(again)


def test_metrics_are_few_short_and_finite(store: HeadStore) -> None:
    digest = store.put_blob(blob("x"))
    for bad in ({f"m{i}": 1.0 for i in range(65)}, {"m" * 65: 1.0}, {"": 1.0}, {"a\n": 1.0}, {"loss": float("inf")}):
        with pytest.raises(InvalidArgument) as caught:
            store.add_version("policy", digest, manifest(), metrics=bad)
        assert caught.value.field == "metrics"
    kept = {f"m{i}": float(i) for i in range(63)} | {"m" * 64: -0.5}
    assert store.add_version("policy", digest, manifest(), metrics=kept).metrics == kept
