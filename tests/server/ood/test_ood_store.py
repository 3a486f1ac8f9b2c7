"""Fits on disk: whole or not there, versions that only grow, and nothing that a crash or a bad disk can slip in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polyhead.heads.format.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PolyheadError,
    ResourceExhausted,
)
from polyhead.heads.store import failpoints
from polyhead.heads.store.io_errors import StoreIoError
from polyhead.heads.store.store import HeadStore
from polyhead.server.engine.work.pooling import Pooling, PromptPooling
from polyhead.server.ood import fits as fits_module
from polyhead.server.ood import store as store_module
from polyhead.server.ood.fits import OodFits, TrunkLayers
from polyhead.server.ood.scores import OodModel
from polyhead.server.ood.store import OodFit, OodStore

TRUNK = "ab" * 32
POOL = PromptPooling(2, Pooling.MEAN)
LAYERS = TrunkLayers(TRUNK, "float32", 3, 2)


def make_fit(name: str = "helpful", **fields: object) -> OodFit:
    fit = OodFit(name, 0, TRUNK, "float32", POOL, 100, 0.01, 1.5, 0.5, 1e9)
    return dataclasses.replace(fit, **fields)  # type: ignore[arg-type]


def make_model(seed: int = 0) -> OodModel:
    generator = np.random.default_rng(seed)
    return OodModel(generator.normal(size=3), np.tril(generator.normal(size=(3, 3))), generator.random(3))


def assert_equal(first: OodModel, second: OodModel) -> None:
    for field in dataclasses.fields(OodModel):
        assert getattr(first, field.name).tobytes() == getattr(second, field.name).tobytes()


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.disarm()


@pytest.fixture
def heads(tmp_path: Path) -> Iterator[HeadStore]:
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        yield store


@pytest.fixture
def store(heads: HeadStore) -> OodStore:
    return OodStore(heads, keep_versions=3)


def reopened(heads: HeadStore) -> OodStore:
    return OodStore(heads, keep_versions=3)


def test_a_fit_comes_back_as_it_went_after_a_restart_too(heads: HeadStore, store: OodStore) -> None:
    model = make_model()
    made = store.add(make_fit(request_id="r"), model)
    assert (made.reference, made.num_bytes > 0) == ("helpful@1", True)
    for each in (store, reopened(heads)):
        assert each.listing() == [made]
        assert each.get("helpful", 0, "f") == each.get("helpful", 1, "f") == each.find_request("r", "") == made
        assert_equal(each.load(made), model)
        assert each.num_bytes == made.num_bytes


def test_the_head_store_opens_with_fits_beside_its_heads(tmp_path: Path) -> None:
    with HeadStore.open(tmp_path / "store", TRUNK) as heads:
        OodStore(heads, 3).add(make_fit(), make_model())
    with HeadStore.open(tmp_path / "store", TRUNK) as heads:
        assert heads.damage is None
        assert len(OodStore(heads, 3).listing()) == 1


def test_every_step_in_the_order_that_survives_a_power_cut(tmp_path: Path) -> None:
    """The numbers are durable before the record that makes them a fit, and both before the answer."""
    record: list[tuple[str, str]] = []
    with HeadStore.open(tmp_path / "store", TRUNK, os_record=record) as heads:
        store = OodStore(heads, 3)
        start = len(record)
        store.add(make_fit(), make_model())
    changes = [(op, re.sub(r"staging/.*", "staging/*", name)) for op, name in record[start:] if op not in ("open", "write")]
    assert changes == [
        ("mkdir", "ood"),
        ("fsync_folder", ""),
        ("fsync", "staging/*"),
        ("rename", "ood/helpful@1.safetensors"),
        ("fsync_folder", "ood"),
        ("fsync", "staging/*"),
        ("rename", "ood/helpful@1.json"),
        ("fsync_folder", "ood"),
    ]


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("name", [point for point in failpoints.OOD if "unlink" not in point])
def test_a_failing_disk_leaves_no_half_fit(heads: HeadStore, store: OodStore, name: str, error: str) -> None:
    """Whatever fails, the error says so, nothing of the fit is left, and the next one works."""
    if "mkdir" not in name:
        store.add(make_fit("other"), make_model())
    before = store.listing()
    failpoints.arm(name, error)
    with pytest.raises((StoreIoError, ResourceExhausted), match="could not store the out-of-distribution fit"):
        store.add(make_fit(request_id="r"), make_model())
    assert not failpoints.is_armed()
    for each in (store, reopened(heads)):
        assert each.listing() == before
        assert each.find_request("r", "") is None
    assert not heads.files.exists("ood") or not [file for file in heads.files.list("ood") if "helpful" in file]
    assert_equal(store.load(store.add(make_fit(), make_model(7))), make_model(7))


def test_numbers_without_a_record_are_no_fit(heads: HeadStore, store: OodStore) -> None:
    """A process that was killed between the two."""
    store.add(make_fit(), make_model())
    heads.files.unlink("ood/helpful@1.json")
    assert reopened(heads).listing() == []
    assert heads.files.list("ood") == []


def test_versions_grow_and_the_oldest_go(heads: HeadStore, store: OodStore) -> None:
    """As with heads, --keep-versions of each name; the number of one that went is never used again."""
    versions = [store.add(make_fit(), make_model(seed)).version for seed in range(5)]
    assert versions == [1, 2, 3, 4, 5]
    for each in (store, reopened(heads)):
        assert [fit.version for fit in each.listing()] == [3, 4, 5]
        with pytest.raises(NotFound, match="helpful@2"):
            each.get("helpful", 2, "f")
    assert heads.files.list("ood") == [f"helpful@{version}.{suffix}" for version in (3, 4, 5) for suffix in ("json", "safetensors")]
    assert reopened(heads).add(make_fit(), make_model()).version == 6


def test_an_old_version_that_cannot_be_deleted_stays_for_now(store: OodStore) -> None:
    for seed in range(3):
        store.add(make_fit(), make_model(seed))
    failpoints.arm("before_ood_unlink", "EIO")
    assert store.add(make_fit(), make_model()).version == 4
    assert [fit.version for fit in store.listing()] == [1, 2, 3, 4]
    store.add(make_fit(), make_model())
    assert [fit.version for fit in store.listing()] == [3, 4, 5]


def test_a_request_id_is_answered_once(store: OodStore) -> None:
    first = store.add(make_fit(request_id="r"), make_model())
    assert store.add(make_fit(request_id="r", mean_score=9.0), make_model(1)) == first
    assert len(store.listing()) == 1
    for change in ({"name": "other"}, {"shrinkage": 0.5}, {"pooling": PromptPooling(3, POOL.method)}):
        with pytest.raises(AlreadyExists, match="helpful@1"):
            store.add(dataclasses.replace(first, **change), make_model())  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_noticed_and_nothing_older_stands_in(tmp_path: Path, heads: HeadStore, store: OodStore, suffix: str, damage: str) -> None:
    for seed in range(2):
        store.add(make_fit(), make_model(seed))
    file = tmp_path / "store" / "ood" / f"helpful@2.{suffix}"
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-1] if damage == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    again = reopened(heads)
    if (suffix, damage) == ("json", "gone"):  # then there is no such fit
        assert again.get("helpful", 0, "f").version == 1
        return
    with pytest.raises(DataLoss, match="helpful@2"):
        again.load(again.get("helpful", 0, "f"))
    assert again.add(make_fit(), make_model()).version == 3
    assert_equal(again.load(again.get("helpful", 0, "f")), make_model())


def test_names_are_bounded(store: OodStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_NAMES", 2)
    for name in ("a", "b", "a"):
        store.add(make_fit(name), make_model())
    with pytest.raises(ResourceExhausted, match="2 names"):
        store.add(make_fit("c"), make_model())
    with pytest.raises(InvalidArgument):
        store.add(make_fit("../c"), make_model())


# which fits can be used


BOUND: dict[str, tuple[TrunkLayers, str]] = {
    "trunk": (dataclasses.replace(LAYERS, trunk_id="cd" * 32), "another trunk: abab"),
    "precision": (dataclasses.replace(LAYERS, precision="bfloat16"), "made at precision float32, the trunk is served at bfloat16"),
    "layer": (dataclasses.replace(LAYERS, tap_layer=1), "reads layer 2, the server keeps 1 and 3"),
    "no tap": (dataclasses.replace(LAYERS, tap_layer=0), "reads layer 2, the server keeps 3"),
}


@pytest.mark.parametrize("name", BOUND)
def test_a_fit_is_bound_to_trunk_precision_and_layer(store: OodStore, name: str) -> None:
    # version 1 would fit all but trunk and precision: it never stands in
    store.add(make_fit(pooling=PromptPooling(3, Pooling.LAST)), make_model())
    store.add(make_fit(), make_model())
    layers, message = BOUND[name]
    with pytest.raises(FailedPrecondition, match=message) as caught:
        OodFits(store, layers).find("helpful", "score.ood")
    assert caught.value.field == "score.ood"


def test_a_fit_is_read_once_and_few_stay_in_memory(store: OodStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits_module, "MAX_LOADED", 2)
    for name in "abc":
        store.add(make_fit(name), make_model())
    fits = OodFits(store, LAYERS)
    first = fits.find("a", "f")
    assert fits.find("a@1", "f") is first
    assert first.score(np.ones(3)) == make_model().score(np.ones(3))
    fits.find("b", "f")
    fits.find("c", "f")
    assert fits.find("a", "f") is not first


def test_what_the_primary_fitted_takes_the_place_of_what_is_in_memory(store: OodStore, tmp_path: Path) -> None:
    """An old primary that follows had made another fit under the same number: it went on serving that one."""
    store.add(make_fit(), make_model())
    fits = OodFits(store, LAYERS)
    fits.find("helpful", "f")
    with HeadStore.open(tmp_path / "primary", TRUNK) as heads:
        primary = OodStore(heads, 3)
        made = primary.add(make_fit(), make_model(1))
        store.adopt(store_module.encode(made), primary.content(made))
    assert_equal(fits.find("helpful", "f").model, make_model(1))


@pytest.mark.parametrize("reference", ["", "A", "../x", "a@0", "a@x"])
def test_bad_references_are_refused(store: OodStore, reference: str) -> None:
    with pytest.raises(PolyheadError) as caught:
        OodFits(store, LAYERS).find(reference, "score.ood")
    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "score.ood")
