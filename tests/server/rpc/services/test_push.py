"""Pushes over a real connection, good and bad, whole ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from polyhead.heads.store import failpoints
from polyhead.server.host.pacing import RECEIVED_BYTES_PER_S, Pacer
from polyhead.server.versions.head_loader import to_file
from polyhead.v1 import heads_pb2 as pb
from polyhead.v1 import types_pb2
from tests.server.fakes import World, heads_server, until
from tests.server.rpc.services.calls import (
    Stub,
    assert_nothing_staged,
    chunk,
    collect,
    field_of,
    header,
    num_staged,
    push,
    refused,
)


@pytest.mark.parametrize("size", [1 << 20, 1000, 61])
async def test_push_pull_round_trip(world: World, stub: Stub, size: int) -> None:
    data = to_file(world.changed(1))
    done = await stub.PushHead(push(data, size, labels=["best"]))
    assert (done.head.version, done.head.active, done.head.resident, list(done.head.labels)) == (2, False, True, ["best"])
    assert done.head.manifest.kind == types_pb2.HEAD_KIND_POLICY
    first, *rest = await collect(stub.PullHead(pb.PullHeadRequest(head="policy@2")))
    assert first.head == done.head
    assert b"".join(part.chunk.data for part in rest) == data


async def test_a_push_of_known_bytes_names_their_version(world: World, stub: Stub) -> None:
    """The newest one of the same name, else of any: a trainer that pushes what it pulled learns it."""
    data = to_file(world.changed(1))
    assert (await stub.PushHead(push(data))).same_file_as == ""
    assert (await stub.PushHead(push(to_file(world.changed(2))))).same_file_as == ""
    assert (await stub.PushHead(push(data, request_id="again"))).same_file_as == "policy@2"
    assert (await stub.PushHead(push(data, request_id="again"))).same_file_as == "policy@2"
    other = pb.HeadManifest(kind=types_pb2.HEAD_KIND_POLICY)
    assert (await stub.PushHead(push(data, name="other", manifest=other, validate_only=True))).same_file_as == "policy@4"


async def test_padding_travels_and_is_inherited(world: World, stub: Stub) -> None:
    """0 and -1 are told apart: a token, and none."""

    async def copied(source: str, **changes: Any) -> int:
        done = await stub.CopyHead(pb.CopyHeadRequest(source=source, target="preference", **changes))
        return int(done.head.manifest.pad_token_id)

    assert await copied("preference@1") == -1
    assert await copied("preference@1", pad_token_id=0) == 0
    assert await copied("preference@3") == 0
    assert await copied("preference@3", pad_token_id=-1) == -1
    for wrong, field in ((-2, "pad_token_id"), (10**6, "manifest.pad_token_id")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await copied("preference@1", pad_token_id=wrong)
        assert field_of(caught.value) == field


async def test_token_0_can_be_appended(world: World, stub: Stub) -> None:
    """On the wire 0 was taken for "not given"."""
    manifest = pb.HeadManifest(read=pb.READ_POSITION_APPEND, append_token_id=0)
    data = b"".join([part.chunk.data async for part in stub.PullHead(pb.PullHeadRequest(head="preference@1"))])
    done = await stub.PushHead(push(data, name="preference", manifest=manifest, validate_only=True))
    assert (done.head.manifest.read, done.head.manifest.append_token_id) == (pb.READ_POSITION_APPEND, 0)


async def test_a_full_disk_is_said_and_logged_and_no_retry_is_asked_for(
    world: World, stub: Stub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status held a time for a retry: clients waited for it eight times, 30 s each, without a word, and no log said why."""
    monkeypatch.setattr(logging.getLogger("polyhead"), "propagate", True)
    failpoints.arm("before_blob_write", "ENOSPC*")
    try:
        error = await refused(stub.PushHead(push(to_file(world.changed(1)))), "RESOURCE_EXHAUSTED")
    finally:
        failpoints.disarm()
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert "polyhead heads delete" in status.message
    assert not any(packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for packed in status.details)
    assert "grpc-retry-pushback-ms" not in trailers
    found = {id(record): record.levelname for record in caplog.records if "disk or quota is full" in record.message}
    assert list(found.values()) == ["ERROR"]  # one record, however many handlers see it


async def test_a_pull_pauses_between_its_slices(world: World, stub: Stub) -> None:
    calls: list[int] = []
    world.workers.pause = calls.append
    await collect(stub.PullHead(pb.PullHeadRequest(head="policy@1")))
    assert calls == [0], "a small file is one slice"


async def test_a_push_beside_requests_is_received_slowly(world: World, stub: Stub) -> None:
    pauses: list[float] = []
    world.workers.pause = Pacer(lambda: False, sleep=pauses.append)
    data = to_file(world.changed(1))
    await stub.PushHead(push(data, 1000))
    assert sum(pauses) >= len(data) / RECEIVED_BYTES_PER_S


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        (lambda d: [], "header"),
        (lambda d: [chunk(0, d)], "header"),
        (lambda d: [header(d), header(d)], "chunk"),
        (lambda d: [header(d), chunk(1, d)], "chunk.offset"),
        (lambda d: [header(d), chunk(0, d[:9]), chunk(0, d[:9])], "chunk.offset"),
        (lambda d: [header(d), chunk(0, d[:9]), chunk(18, d[18:])], "chunk.offset"),
        (lambda d: [header(d), chunk(0, b"")], "chunk.data"),
        (lambda d: [header(d), chunk(0, d + b"x")], "chunk.data"),
        (lambda d: [header(d), chunk(0, d[:-1])], "data"),
        (lambda d: [header(d), chunk(0, b"x" + d[1:])], "sha256"),
        (lambda d: [header(d, name="../x")], "header.name"),
        (lambda d: [header(d, sha256="x")], "header.sha256"),
        (lambda d: [header(d, num_bytes=0)], "declared_bytes"),
        (lambda d: [header(d, trunk_sha256={"a": "b"})], "header.trunk_sha256[a]"),
        (lambda d: [header(d, manifest=pb.HeadManifest(kind=9))], "header.manifest.kind"),
        (lambda d: push(b"PK\x03\x04" + b"0" * 100), "data"),
    ],
)
async def test_bad_pushes_name_the_field_and_leave_nothing(world: World, stub: Stub, parts: Any, field: str) -> None:
    await refused(stub.PushHead(iter(parts(to_file(world.changed(1))))), "INVALID_ARGUMENT", field)
    assert_nothing_staged(world)


async def test_other_refusals(world: World, stub: Stub) -> None:
    data = to_file(world.changed(1))
    await refused(stub.PushHead(iter([header(data, num_bytes=1 << 40)])), "RESOURCE_EXHAUSTED")
    await refused(stub.PushHead(push(data, manifest=pb.HeadManifest(trunk_id="a" * 64))), "FAILED_PRECONDITION")
    assert_nothing_staged(world)


async def test_an_abandoned_push_is_reclaimed(world: World) -> None:
    data = to_file(world.changed(1))
    world.registry.bootstrap(world.policy)

    async def stall() -> AsyncIterator[pb.PushHeadRequest]:
        yield header(data)
        yield chunk(0, data[:100])
        await asyncio.Event().wait()

    async with heads_server(world, push_idle_s=0.1) as (impatient, _):
        await refused(impatient.PushHead(stall()), "DEADLINE_EXCEEDED")
        assert_nothing_staged(world)
    async with heads_server(world, push_idle_s=60.0) as (stub, _):
        call = stub.PushHead(stall())
        await until(lambda: num_staged(world) == 1)
        call.cancel()
        await until(lambda: num_staged(world) == 0)


async def test_at_most_four_pushes_at_once(world: World, stub: Stub) -> None:
    data = to_file(world.changed(1))

    async def stall() -> AsyncIterator[pb.PushHeadRequest]:
        yield header(data)
        await asyncio.Event().wait()

    calls = [stub.PushHead(stall()) for _ in range(4)]
    await until(lambda: num_staged(world) == 4)
    await refused(stub.PushHead(push(data)), "RESOURCE_EXHAUSTED")
    for call in calls:
        call.cancel()
    await until(lambda: num_staged(world) == 0)
    assert (await stub.PushHead(push(data))).head.version == 2


async def test_a_retried_push_is_answered_before_its_bytes(world: World, stub: Stub) -> None:
    data = to_file(world.changed(1))
    first = await stub.PushHead(push(data, request_id="p"))
    assert (await stub.PushHead(iter([header(data, request_id="p")]))).head == first.head
    await refused(stub.PushHead(push(to_file(world.changed(2)), request_id="p")), "ALREADY_EXISTS")


async def test_dry_run(world: World, stub: Stub) -> None:
    name = world.spec.trunk_sources[0]
    fields = {"validate_only": True, "trunk_sha256": {name: world.checkpoint.sha256(name)}}
    done = await stub.PushHead(push(to_file(world.changed(1)), **fields))
    assert (done.head.version, done.num_trunk_tensors_compared) == (0, 1)
    assert_nothing_staged(world)
