"""Which versions can be deleted and collected, and that labels keep them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polyhead.heads.format.errors import (
    FailedPrecondition,
    InvalidArgument,
)
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import activate, assert_no_leftovers, assert_restarts_equal, push


def test_what_is_in_use_cannot_be_deleted(store: HeadStore) -> None:
    for number in (1, 2, 3, 4):
        push(store, "policy", number)
    for version in (1, 2, 3):
        activate(store, {"policy": version})
    store.label("policy", 4, add=["best"])
    for version, reason in ((3, "active in generation 3"), (2, "rollback to generation 2"), (4, "labelled 'best'")):
        with pytest.raises(FailedPrecondition, match=reason):
            store.delete_version("policy", version)
    store.delete_version("policy", 1)
    with pytest.raises(FailedPrecondition, match="active"):
        store.delete_version("policy", 3, force=True)
    store.delete_version("policy", 2, force=True)
    store.label("policy", 4, remove=["best"])
    store.delete_version("policy", 4)
    assert [record.version for record in store.versions("policy")] == [3]


def test_the_parent_of_a_rollback_stays(store: HeadStore) -> None:
    """A rollback goes to the parent by default, which need not be the generation before."""
    for number in (1, 2, 3):
        push(store, "policy", number)
        store.commit_generation({"policy": number}, parent=1 if number > 1 else None)
    assert store.collect(1) == []
    store.commit_generation({"policy": 3}, parent=3)
    assert [record.version for record in store.collect(1)] == [1, 2]


def test_collect(store: HeadStore, folder: Path) -> None:
    for number in range(1, 8):
        push(store, "policy", number)
        activate(store, {"policy": number})
    store.label("policy", 2, add=["keep"])
    deleted = store.collect(1)
    assert [record.version for record in deleted] == [1, 3, 4, 5]
    assert [record.version for record in store.versions("policy")] == [2, 6, 7]
    assert len(os.listdir(folder / "blobs")) == 3
    assert store.collect(1) == []
    for keep in (0, -1, True):
        with pytest.raises(InvalidArgument):
            store.collect(keep)
    store.close()
    assert_no_leftovers(folder)


def test_labels_survive_a_restart(store: HeadStore, folder: Path) -> None:
    push(store, "policy", 1)
    store.label("policy", 1, add=["best"])
    assert store.label("policy", 1, add=["best"]).labels == ("best",)
    assert_restarts_equal(store, folder)
