"""Pushes of the tensors that differ from a stored version."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead.server.versions.head_loader import to_file
from polyhead.v1 import heads_pb2 as pb
from tests.server.fakes import World, heads_server, until
from tests.server.rpc.services.calls import (
    NORM,
    Stub,
    assert_nothing_staged,
    chunk,
    collect,
    delta,
    field_of,
    num_staged,
    parts_of,
    push,
    refused,
)


async def test_a_push_of_one_tensor_makes_a_whole_version(world: World, stub: Stub) -> None:
    done = (await stub.PushHead(delta(world, [NORM]))).head
    assert (done.version, done.manifest.base) == (2, "policy@1")
    whole = to_file({**world.policy, NORM: world.changed(1)[NORM]})
    assert (done.digest, done.num_bytes) == (hashlib.sha256(whole).hexdigest(), len(whole))
    await stub.ActivateHeads(pb.ActivateHeadsRequest(heads={"policy": 2}))
    await stub.CopyHead(pb.CopyHeadRequest(source="policy@2", target="reference"))
    rest = [part.chunk.data for part in await collect(stub.PullHead(pb.PullHeadRequest(head="policy@2")))]
    assert b"".join(rest) == whole


async def test_a_delta_by_a_pusher_who_does_not_hold_the_whole(world: World, stub: Stub) -> None:
    unknown = {"sha256": "", "num_bytes": 0}
    first = (await stub.PushHead(delta(world, [NORM], request_id="d", **unknown))).head
    assert first.digest == hashlib.sha256(to_file({**world.policy, NORM: world.changed(1)[NORM]})).hexdigest()
    again = next(delta(world, [NORM], request_id="d", **unknown))
    assert (await stub.PushHead(iter([again]))).head == first, "known by what was sent, before its bytes"
    await refused(
        stub.PushHead(delta(world, [NORM], seed=2, request_id="d", **unknown)), "ALREADY_EXISTS"
    )


async def test_a_delta_is_answered_again_when_its_base_is_gone(world: World, stub: Stub) -> None:
    await stub.PushHead(push(to_file(world.changed(1))))
    whole, sent = to_file(world.changed(2)), to_file(world.changed(2))
    first = (await stub.PushHead(parts_of(whole, sent, delta_base="policy@2", request_id="d"))).head
    await stub.DeleteHead(pb.DeleteHeadRequest(head="policy@2"))
    assert (await stub.PushHead(parts_of(whole, sent, delta_base="policy@2", request_id="d"))).head == first
    lost = stub.PushHead(parts_of(whole, sent, delta_base="policy@2"))
    await refused(lost, "NOT_FOUND")


async def test_a_base_deleted_while_the_push_runs_is_still_there_for_it(world: World, stub: Stub) -> None:
    base = to_file(world.changed(1))
    await stub.PushHead(push(base))
    sent = to_file({NORM: world.policy[NORM]})
    whole = to_file({**world.changed(1), NORM: world.policy[NORM]})
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def parts() -> AsyncIterator[pb.PushHeadRequest]:
        first, rest = parts_of(whole, sent, delta_base="policy@2")
        yield first
        yield chunk(0, rest.chunk.data[:9])
        begun.set()
        await go_on.wait()
        yield chunk(9, rest.chunk.data[9:])

    call = stub.PushHead(parts())
    await begun.wait()
    await until(lambda: num_staged(world))  # the push has opened its base
    await stub.DeleteHead(pb.DeleteHeadRequest(head="policy@2"))
    assert hashlib.sha256(base).hexdigest() not in {path.name for path in (Path(world.store.path) / "blobs").iterdir()}
    go_on.set()
    done = (await call).head
    assert (done.version, done.manifest.base, done.digest) == (3, "policy@2", hashlib.sha256(whole).hexdigest())


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"delta_base": "policy"}, "INVALID_ARGUMENT", "header.delta_base"),
        ({"delta_base": "../x"}, "INVALID_ARGUMENT", "header.delta_base"),
        ({"delta_base": ""}, "INVALID_ARGUMENT", "header.delta_num_bytes"),
        ({"delta_base": "policy@9"}, "NOT_FOUND", ""),
        ({"delta_base": "value@1"}, "INVALID_ARGUMENT", "header.num_bytes"),
        ({"delta_base": "value@1", "manifest": pb.HeadManifest(output=pb.OUTPUT_KIND_TIED)}, "FAILED_PRECONDITION", "header.delta_base"),
        ({"delta_num_bytes": 0}, "INVALID_ARGUMENT", "header.delta_num_bytes"),
        ({"delta_num_bytes": 1 << 40}, "RESOURCE_EXHAUSTED", ""),
        ({"num_bytes": 1 << 40}, "RESOURCE_EXHAUSTED", ""),
        ({"num_bytes": 5}, "INVALID_ARGUMENT", "header.num_bytes"),
        ({"delta_sha256": "x"}, "INVALID_ARGUMENT", "header.delta_sha256"),
        ({"delta_sha256": "ab" * 32}, "INVALID_ARGUMENT", "sha256"),
        ({"sha256": "ab" * 32}, "FAILED_PRECONDITION", "header.sha256"),
        ({"sha256": "x"}, "INVALID_ARGUMENT", "header.sha256"),
        ({"manifest": pb.HeadManifest(lora=pb.LoraAdapter(rank=2, alpha=2.0))}, "INVALID_ARGUMENT", "header.delta_base"),
    ],
)
async def test_bad_deltas_name_the_field_and_leave_nothing(
    world: World, stub: Stub, fields: dict[str, Any], code: str, field: str
) -> None:
    error = await refused(stub.PushHead(delta(world, [NORM], **fields)), code, field if code == "INVALID_ARGUMENT" else "")
    assert field_of(error) == field
    assert_nothing_staged(world)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.layers.9.x": torch.ones(2)}, "not a tensor of the base: 'model.layers.9.x'"),
        ({NORM: torch.ones(3)}, "in the base, received F32 [3]"),
        ({NORM: torch.ones(32).bfloat16()}, "in the base, received BF16 [32]"),
    ],
)
async def test_a_delta_has_the_bases_names_shapes_and_dtypes(
    world: World, stub: Stub, tensors: dict[str, torch.Tensor], message: str
) -> None:
    sent = to_file(tensors)
    error = await refused(stub.PushHead(parts_of(sent, sent, num_bytes=0, sha256="")), "FAILED_PRECONDITION")
    assert field_of(error) == "data"
    assert message in str(error.details())
    assert_nothing_staged(world)


async def test_numbers_that_are_not_finite_are_found_in_a_delta_too(world: World, stub: Stub) -> None:
    bad = torch.full_like(world.policy[NORM], float("nan"))
    sent, whole = to_file({NORM: bad}), to_file({**world.policy, NORM: bad})
    await refused(stub.PushHead(parts_of(whole, sent)), "INVALID_ARGUMENT", "data")
    assert_nothing_staged(world)


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_damaged_base_makes_no_version(world: World, stub: Stub, is_declared: bool) -> None:
    record = world.store.get("policy", 1)
    path = Path(world.store.path) / "blobs" / record.blob
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    fields = {} if is_declared else {"sha256": "", "num_bytes": 0}
    last = to_file({NORM: world.changed(1)[NORM]})
    whole = to_file({**world.policy, NORM: world.changed(1)[NORM]})
    await refused(stub.PushHead(parts_of(whole, last, **fields)), "DATA_LOSS")
    assert_nothing_staged(world)


async def test_bytes_received_are_counted_by_form(world: World) -> None:
    world.registry.bootstrap(world.policy)
    seen: Counter[str] = Counter()
    async with heads_server(world, on_received=lambda form, num_bytes: seen.update({form: num_bytes})) as (stub, _):
        await stub.PushHead(push(to_file(world.changed(1))))
        await stub.PushHead(delta(world, [NORM]))
    sent = to_file({NORM: world.changed(1)[NORM]})
    assert seen == {"whole": len(to_file(world.policy)), "delta": len(sent)}
    assert 20 * seen["delta"] < seen["whole"]


async def test_list_tensors(world: World, stub: Stub) -> None:
    listed = await stub.ListHeadTensors(pb.ListHeadTensorsRequest(head="policy"))
    assert (listed.head.version, listed.head.name) == (1, "policy")
    assert {each.name: (each.dtype, tuple(each.shape), each.sha256) for each in listed.tensors} == {
        name: ("float32", tuple(tensor.shape), hashlib.sha256(tensor.numpy().tobytes()).digest())
        for name, tensor in world.policy.items()
    }
    await refused(stub.ListHeadTensors(pb.ListHeadTensorsRequest(head="policy@9")), "NOT_FOUND")
    await refused(stub.ListHeadTensors(pb.ListHeadTensorsRequest(head="Ä")), "INVALID_ARGUMENT", "head")
