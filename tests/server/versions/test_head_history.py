"""What keeps versions, what removes them, and what the history says of both: labels, deactivation, removed, gone, same_as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyhead.server.versions.head_loader import to_file
from polyhead.v1 import heads_pb2 as pb
from tests.server.fakes import World, heads_server
from tests.server.rpc.services.calls import push, refused


@pytest.fixture
def small(world_model: Path, tmp_path: Path) -> Any:
    """Two versions of each name are kept."""
    world = World.open(world_model, tmp_path / "small", keep_versions=2)
    world.registry.bootstrap(world.policy)
    yield world
    world.close()


async def push_policy(stub: Any, world: World, seed: int, **fields: Any) -> pb.PushHeadResponse:
    answer: pb.PushHeadResponse = await stub.PushHead(push(to_file(world.changed(seed)), **fields))
    return answer


async def test_a_push_says_which_versions_it_removed(small: World) -> None:
    async with heads_server(small) as (stub, _):
        assert not (await push_policy(stub, small, 1)).removed
        assert not (await push_policy(stub, small, 2)).removed, "version 1 is active"
        done = await push_policy(stub, small, 3, request_id="p")
        assert list(done.removed) == ["policy@2"]
        again = await push_policy(stub, small, 3, request_id="p")
        assert (again.head.version, list(again.removed)) == (4, [])
        done = await stub.CopyHead(pb.CopyHeadRequest(source="policy", target="policy"))
        assert list(done.removed) == ["policy@3"]


async def test_an_activation_removes_what_it_frees(small: World) -> None:
    """A full disk stayed full although each activation freed a version: only a push collected."""
    async with heads_server(small) as (stub, _):
        for seed in (1, 2):
            await push_policy(stub, small, seed)
        assert not (await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": 2}))).removed, "version 1 is for a rollback"
        assert list((await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": 3}))).removed) == ["policy@1"]


async def test_labels_keep_a_version_until_they_are_removed(small: World) -> None:
    async with heads_server(small) as (stub, _):
        await push_policy(stub, small, 1)
        done = await stub.LabelHead(pb.LabelHeadRequest(head="policy@2", add=["best", "paper"], remove=["unknown"]))
        assert list(done.head.labels) == ["best", "paper"]
        for seed in (2, 3, 4):
            await push_policy(stub, small, seed)
        assert [record.version for record in small.store.versions("policy")] == [1, 2, 4, 5]
        error = await refused(stub.DeleteHead(pb.DeleteHeadRequest(head="policy@2")), "FAILED_PRECONDITION")
        assert "labelled 'best'" in (error.details() or "")
        assert "best, paper" in (error.details() or "")
        done = await stub.LabelHead(pb.LabelHeadRequest(head="policy@2", remove=["best", "paper"]))
        assert list(done.head.labels) == []
        assert "policy@2" in (await push_policy(stub, small, 5)).removed


async def test_a_retry_does_not_change_labels_again(small: World) -> None:
    async with heads_server(small) as (stub, _):
        add = pb.LabelHeadRequest(head="policy", add=["best"], request_id="late")
        assert list((await stub.LabelHead(add)).head.labels) == ["best"]
        await stub.LabelHead(pb.LabelHeadRequest(head="policy", remove=["best"], request_id="then"))
        assert list((await stub.LabelHead(add)).head.labels) == [], "the late copy of a request undid a newer one"


async def test_a_repetition_may_leave_the_digests_out(small: World) -> None:
    """A client that was started anew does not know them any more."""
    async with heads_server(small) as (stub, _):
        held = (await stub.GetHead(pb.GetHeadRequest(head="policy@1"))).head.digest
        first = await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": 1}, digests={"policy": held}, request_id="a"))
        again = await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": 1}, request_id="a"))
        assert again.generation == first.generation
        other = pb.ActivateHeadsRequest(heads={"policy": 1}, digests={"policy": "ab" * 32}, request_id="a")
        await refused(stub.ActivateHeads(other), "FAILED_PRECONDITION")


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (pb.LabelHeadRequest(head="policy@1"), "INVALID_ARGUMENT", "add"),
        (pb.LabelHeadRequest(head="policy@1", add=["a"], remove=["a"]), "INVALID_ARGUMENT", "remove"),
        (pb.LabelHeadRequest(head="policy@1", add=["../x"]), "INVALID_ARGUMENT", "add"),
        (pb.LabelHeadRequest(head="policy@1", add=[f"a{n}" for n in range(17)]), "INVALID_ARGUMENT", "add"),
        (pb.LabelHeadRequest(head="policy@9", add=["a"]), "NOT_FOUND", ""),
        (pb.LabelHeadRequest(head="policy@", add=["a"]), "INVALID_ARGUMENT", "head"),
    ],
)
async def test_bad_changes_of_labels(small: World, request_: pb.LabelHeadRequest, code: str, field: str) -> None:
    async with heads_server(small) as (stub, _):
        await refused(stub.LabelHead(request_), code, field)
        assert small.store.get("policy", 1).labels == ()


async def test_a_version_has_at_most_sixteen_labels(small: World) -> None:
    async with heads_server(small) as (stub, _):
        await stub.LabelHead(pb.LabelHeadRequest(head="policy", add=[f"a{n}" for n in range(16)]))
        await refused(stub.LabelHead(pb.LabelHeadRequest(head="policy", add=["b"])), "INVALID_ARGUMENT", "add")
        done = await stub.LabelHead(pb.LabelHeadRequest(head="policy", add=["b"], remove=["a0"]))
        assert len(done.head.labels) == 16


async def test_a_name_leaves_the_active_set(small: World) -> None:
    async with heads_server(small) as (stub, _):
        done = await stub.ActivateHeads(pb.ActivateHeadsRequest(deactivate=["rule", "value"], request_id="d"))
        assert sorted(done.generation.heads) == ["policy", "preference", "reference"]
        assert sorted(small.engine.active.heads) == ["policy", "preference", "reference"]
        back = await stub.RollbackHeads(pb.RollbackHeadsRequest())
        assert sorted(back.generation.heads) == ["policy", "preference", "reference", "rule", "value"]
        swapped = pb.ActivateHeadsRequest(heads={"policy": 1}, deactivate=["rule"])
        assert "rule" not in (await stub.ActivateHeads(swapped)).generation.heads


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (pb.ActivateHeadsRequest(deactivate=["policy"]), "INVALID_ARGUMENT", "deactivate"),
        (pb.ActivateHeadsRequest(deactivate=["../x"]), "INVALID_ARGUMENT", "deactivate[0]"),
        (pb.ActivateHeadsRequest(heads={"policy": 1}, expected_versions={"../x": 1}), "INVALID_ARGUMENT", "expected_versions[../x]"),
        (pb.ActivateHeadsRequest(heads={"policy": 1}, expected_versions={"policy": 9}), "ABORTED", ""),
        (pb.ActivateHeadsRequest(heads={"policy": 1}, digests={"value": "ab" * 32}), "INVALID_ARGUMENT", "digests[value]"),
        (pb.ActivateHeadsRequest(heads={"policy": 1}, digests={"policy": "sha256:ab"}), "INVALID_ARGUMENT", "digests[policy]"),
        (pb.ActivateHeadsRequest(heads={"policy": 1}, digests={"policy": "ab" * 32}), "FAILED_PRECONDITION", ""),
        (pb.ActivateHeadsRequest(heads={"value": 1}, deactivate=["value"]), "INVALID_ARGUMENT", "deactivate"),
        (pb.ActivateHeadsRequest(deactivate=["nobody"]), "NOT_FOUND", ""),
    ],
)
async def test_names_that_cannot_leave(small: World, request_: pb.ActivateHeadsRequest, code: str, field: str) -> None:
    async with heads_server(small) as (stub, _):
        await refused(stub.ActivateHeads(request_), code, field)
        assert small.registry.active.generation == 1


async def test_a_rollback_asks_for_the_versions_that_its_caller_saw(small: World) -> None:
    async with heads_server(small) as (stub, _):
        await push_policy(stub, small, 1)
        await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": 2}))
        for name, code, field in (("policy", "ABORTED", ""), ("../x", "INVALID_ARGUMENT", "expected_versions[../x]")):
            await refused(stub.RollbackHeads(pb.RollbackHeadsRequest(expected_versions={name: 1})), code, field)
        assert small.registry.active.generation == 2
        back = await stub.RollbackHeads(pb.RollbackHeadsRequest(expected_versions={"policy": 2, "nobody": 0}))
        assert back.generation.heads["policy"] == 1


async def test_the_history_says_what_can_be_restored_and_what_equals_what(small: World) -> None:
    async with heads_server(small) as (stub, _):
        for seed in (1, 2, 3):
            await push_policy(stub, small, seed)
            await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": seed + 1}))
        await stub.RollbackHeads(pb.RollbackHeadsRequest())
        rows = (await stub.ListGenerations(pb.ListGenerationsRequest())).generations
        told = [(row.number, row.heads["policy"], row.parent, row.same_as, list(row.gone)) for row in rows]
        assert told == [
            (5, 3, 2, 3, []),  # generation 5 is 3 again, the next rollback goes to 2
            (4, 4, 3, 0, []),
            (3, 3, 2, 0, []),
            (2, 2, 1, 0, ["policy@2"]),  # which would fail
            (1, 1, 0, 0, ["policy@1"]),
        ]
        await refused(stub.RollbackHeads(pb.RollbackHeadsRequest()), "NOT_FOUND")
