"""Generations while nothing crashes: activation, history, retries, and the way out of a damaged active set."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyhead.heads.format.errors import (
    AlreadyExists,
    Conflict,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
)
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import TRUNK, activate, assert_restarts_equal, blob, push


def test_an_activation_and_its_history(store: HeadStore, folder: Path) -> None:
    heads = {name: push(store, name, name) for name in ("policy", "value")}
    answer = {"heads": [{"name": "policy"}]}
    first = store.commit_generation(heads, parent=None, expected_generation=0, note="start", answer=answer)
    second = store.commit_generation({"policy": 1}, parent=1, expected_generation=1)
    assert (first.number, first.parent, dict(first.heads), first.note) == (1, None, heads, "start")
    assert store.current == second
    assert store.history() == [second, first]
    assert store.generation(1) == first
    assert_restarts_equal(store, folder)


def test_a_stale_expectation_changes_nothing(store: HeadStore) -> None:
    push(store, "policy", 1)
    activate(store, {"policy": 1})
    for expected in (0, 2):
        with pytest.raises(Conflict) as caught:
            store.commit_generation({"policy": 1}, parent=1, expected_generation=expected)
        assert caught.value.metadata == {"current_generation": "1"}
    assert len(store.history()) == 1


def test_a_retry_gets_the_first_answer_whatever_it_expects(store: HeadStore, folder: Path) -> None:
    """The client whose connection broke does not know that its own activation moved the generation on."""
    push(store, "policy", 1)
    push(store, "policy", 2)
    first = store.commit_generation({"policy": 1}, parent=None, request_id="a", expected_generation=0, answer={"told": 1})
    store.commit_generation({"policy": 2}, parent=1)
    store.close()
    with HeadStore.open(folder, TRUNK) as again:
        assert again.commit_generation({"policy": 1}, parent=2, request_id="a", expected_generation=0) == first
        assert again.generation_of_request("a") == first
        with pytest.raises(AlreadyExists):
            again.commit_generation({"policy": 2}, parent=2, request_id="a")
        assert again.current is not None
        assert again.current.number == 2


def test_activations_that_cannot_be(store: HeadStore, folder: Path) -> None:
    push(store, "policy", 1)
    bad: list[dict[str, object]] = [
        {"heads": {}, "parent": None},
        {"heads": {"policy": 1}, "parent": 1},
        {"heads": {"policy": 1}, "parent": None, "note": "x" * 5000},
        {"heads": {"policy": 1}, "parent": None, "answer": {"x": object()}},
        {"heads": {"policy": 1}, "parent": None, "answer": {"x": "y" * 40_000}},
    ]
    for arguments in bad:
        with pytest.raises(InvalidArgument):
            store.commit_generation(**arguments)  # type: ignore[arg-type]
    (folder / "blobs" / store.get("policy", 1).digest).unlink()
    with pytest.raises(DataLoss, match="missing"):
        store.commit_generation({"policy": 1}, parent=None)
    assert store.current is None


def test_a_damaged_active_set_stops_everything_but_its_repair(store: HeadStore, folder: Path) -> None:
    activate(store, {"policy": push(store, "policy", 1)})
    activate(store, {"policy": push(store, "policy", 2)})
    activate(store, {"policy": push(store, "policy", 3)})
    (folder / "blobs" / store.get("policy", 2).digest).write_bytes(b"x" * len(blob(2)))
    store.close()
    (folder / "generations" / "3.json").write_bytes(b"")
    with HeadStore.open(folder, TRUNK) as again:
        assert again.damage is not None
        assert again.damage.repair == f"polyhead heads rollback --to 1 --store {folder}"  # 2 is damaged, too
        for call in (
            lambda: again.commit_generation({"policy": 1}, parent=None),
            lambda: again.delete_version("policy", 1, force=True),
            lambda: again.collect(1),
        ):
            with pytest.raises(FailedPrecondition, match="repaired"):
                call()
        assert again.repair_to(1).number == 4
        assert again.damage is None
        assert push(again, "policy", 4) == 4
    with HeadStore.open(folder, TRUNK) as again:
        assert again.current is not None
        assert (again.current.number, again.current.parent) == (4, 1)


def test_a_store_whose_only_generation_is_damaged(store: HeadStore, folder: Path) -> None:
    activate(store, {"policy": push(store, "policy", 1)})
    store.close()
    (folder / "generations" / "1.json").write_bytes(b"")
    with HeadStore.open(folder, TRUNK) as again:
        assert again.damage is not None
        assert "--to 0 " in again.damage.repair
        assert dict(again.repair_to(0).heads) == {}
        assert activate(again, {"policy": 1}).number == 3


def test_a_clock_that_jumps_back(store: HeadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """K12: order comes from numbers, never from the clock."""
    for number, now in ((1, 2e9), (2, 1e9), (3, 3e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        push(store, "policy", number)
        activate(store, {"policy": number})
    assert [record.number for record in store.history()] == [3, 2, 1]
    assert [record.version for record in store.collect(1)] == [1]


