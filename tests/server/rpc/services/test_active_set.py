"""Activations, copies, listings and watching over a real connection."""

from __future__ import annotations

import pytest

from polyhead.server.versions.head_loader import to_file
from polyhead.v1 import heads_pb2 as pb
from tests.server.fakes import World
from tests.server.rpc.services.calls import (
    Stub,
    push,
    refused,
)


async def test_activate_roll_back_and_history(world: World, stub: Stub) -> None:
    await stub.PushHead(push(to_file(world.changed(1))))
    request = pb.ActivateHeadsRequest(heads={"policy": 2}, expected_generation=1, request_id="a", note="round 1")
    done = await stub.ActivateHeads(request)
    assert (done.generation.number, done.generation.parent, done.generation.note) == (2, 1, "round 1")
    assert (done.num_pinned_requests, done.num_aborted_requests, done.num_following_requests) == (2, 1, 3)
    assert (await stub.ActivateHeads(request)).generation == done.generation
    await refused(stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": 1}, expected_generation=1)), "ABORTED")
    back = await stub.RollbackHeads(pb.RollbackHeadsRequest(expected_generation=2))
    assert (back.generation.number, back.generation.heads["policy"]) == (3, 1)
    pages, token = [], ""
    while True:
        page = await stub.ListGenerations(pb.ListGenerationsRequest(page_size=2, page_token=token))
        pages += [row.number for row in page.generations]
        if not (token := page.next_page_token):
            break
    assert pages == [3, 2, 1]


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (pb.ActivateHeadsRequest(), "INVALID_ARGUMENT", "heads"),
        (pb.ActivateHeadsRequest(heads={"policy": 0}), "INVALID_ARGUMENT", "heads[policy]"),
        (pb.ActivateHeadsRequest(heads={"A b": 1}), "INVALID_ARGUMENT", "heads[A b]"),
        (pb.ActivateHeadsRequest(heads={"policy": 1}, note="x" * 1025), "INVALID_ARGUMENT", "note"),
        (pb.ActivateHeadsRequest(heads={"policy": 1}, request_id="x" * 201), "INVALID_ARGUMENT", "request_id"),
        (pb.ActivateHeadsRequest(heads={"policy": 8}), "NOT_FOUND", ""),
    ],
)
async def test_bad_activations(world: World, stub: Stub, request_: pb.ActivateHeadsRequest, code: str, field: str) -> None:
    await refused(stub.ActivateHeads(request_), code, field)
    assert world.registry.active.generation == 1


async def test_copy_get_delete(world: World, stub: Stub) -> None:
    done = await stub.CopyHead(pb.CopyHeadRequest(source="policy", target="reference", request_id="c"))
    assert (done.head.version, done.head.manifest.base) == (2, "policy@1")
    assert (await stub.CopyHead(pb.CopyHeadRequest(source="policy", target="reference", request_id="c"))).head == done.head
    assert (await stub.GetHead(pb.GetHeadRequest(head="reference@2"))).head == done.head
    zero = await stub.CopyHead(pb.CopyHeadRequest(source="preference", target="preference", bias=0.0))
    assert zero.head.manifest.bias == 0.0
    await stub.DeleteHead(pb.DeleteHeadRequest(head="reference@2"))
    await refused(stub.GetHead(pb.GetHeadRequest(head="reference@2")), "NOT_FOUND")
    await refused(stub.DeleteHead(pb.DeleteHeadRequest(head="policy@1")), "FAILED_PRECONDITION")
    await refused(stub.DeleteHead(pb.DeleteHeadRequest(head="policy")), "INVALID_ARGUMENT", "head")
    await refused(stub.CopyHead(pb.CopyHeadRequest(source="nope", target="x")), "NOT_FOUND")


async def test_paging(world: World, stub: Stub) -> None:
    for _ in range(3):
        await stub.CopyHead(pb.CopyHeadRequest(source="policy", target="policy"))
    rows, token = [], ""
    while True:
        page = await stub.ListHeads(pb.ListHeadsRequest(page_size=2, page_token=token))
        rows += [(row.name, row.version) for row in page.heads]
        if not (token := page.next_page_token):
            break
    assert rows == [("policy", 4), ("policy", 3), ("policy", 2), ("policy", 1)] + [
        (name, 1) for name in ("preference", "reference", "rule", "value")
    ]
    first = await stub.ListHeads(pb.ListHeadsRequest(page_size=1))
    await refused(
        stub.ListHeads(pb.ListHeadsRequest(name="policy", page_token=first.next_page_token)), "INVALID_ARGUMENT", "page_token"
    )
    for bad in ("x", "é", "W10=", "a" * 5000):
        await refused(stub.ListHeads(pb.ListHeadsRequest(page_token=bad)), "INVALID_ARGUMENT", "page_token")
    await refused(stub.ListHeads(pb.ListHeadsRequest(page_size=-1)), "INVALID_ARGUMENT", "page_size")
    assert not (await stub.ListHeads(pb.ListHeadsRequest(name="nope"))).heads


async def test_watch(world: World, stub: Stub) -> None:
    watch = stub.WatchHeads(pb.WatchHeadsRequest())
    assert (await watch.read()).generation.number == 1
    await stub.CopyHead(pb.CopyHeadRequest(source="policy", target="policy"))
    for version in (2, 1, 2):
        await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": version}))
    assert [(await watch.read()).generation.number for _ in range(3)] == [2, 3, 4]
    later = stub.WatchHeads(pb.WatchHeadsRequest(after_generation=2))
    assert [(await later.read()).generation.number for _ in range(2)] == [3, 4]
    world.registry.feed.close()
    for call in (watch, later):
        await refused(call.read(), "UNAVAILABLE")
