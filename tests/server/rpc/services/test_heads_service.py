"""HeadService over a real connection: pushes good and bad, pulls, copies, activations, paging, watching."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from google.rpc import error_details_pb2, status_pb2

from polyhead.heads.store import failpoints
from polyhead.server.host.pacing import RECEIVED_BYTES_PER_S, Pacer
from polyhead.server.versions.head_loader import to_file
from polyhead.v1 import heads_pb2 as pb
from polyhead.v1 import heads_pb2_grpc, types_pb2
from tests.server.fakes import World, heads_server, until

Stub = heads_pb2_grpc.HeadServiceStub


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Stub]:
    world.registry.bootstrap(world.policy)
    async with heads_server(world, push_idle_s=60.0) as (opened, _):
        yield opened


def header(data: bytes, **fields: Any) -> pb.PushHeadRequest:
    plain: dict[str, Any] = {"name": "policy", "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return pb.PushHeadRequest(header=pb.PushHeader(**{**plain, **fields}))


def chunk(offset: int, data: bytes) -> pb.PushHeadRequest:
    return pb.PushHeadRequest(chunk=pb.Chunk(offset=offset, data=data))


def push(data: bytes, size: int = 1 << 20, **fields: Any) -> Iterator[pb.PushHeadRequest]:
    yield header(data, **fields)
    for offset in range(0, len(data), size):
        yield chunk(offset, data[offset : offset + size])


async def refused(call: Any, code: str, field: str = "") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code().name == code, caught.value
    if field:
        status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"])
        violations = error_details_pb2.BadRequest()
        assert any(packed.Unpack(violations) for packed in status.details)
        assert violations.field_violations[0].field == field
    return caught.value


def field_of(error: grpc.aio.AioRpcError) -> str:
    """The field that the details name, whatever the code."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    for packed in status.details:
        request, precondition = error_details_pb2.BadRequest(), error_details_pb2.PreconditionFailure()
        if packed.Unpack(request):
            return request.field_violations[0].field
        if packed.Unpack(precondition):
            return precondition.violations[0].subject
    return ""


async def collect(call: Any) -> list[Any]:
    return [message async for message in call]


def assert_nothing_staged(world: World) -> None:
    assert [record.version for record in world.store.versions("policy")] == [1]
    assert not list((Path(world.store.path) / "staging").iterdir())


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


def num_staged(world: World) -> int:
    return len(list((Path(world.store.path) / "staging").iterdir()))


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


def delta(world: World, names: Sequence[str], *, seed: int = 1, **fields: Any) -> Iterator[pb.PushHeadRequest]:
    """A push of these tensors alone, of a head in which only they differ from policy@1."""
    changed = {name: world.changed(seed)[name] for name in names}
    whole, sent = to_file({**world.policy, **changed}), to_file(changed)
    return parts_of(whole, sent, **fields)


def parts_of(whole: bytes, sent: bytes, **fields: Any) -> Iterator[pb.PushHeadRequest]:
    plain = {"delta_base": "policy@1", "delta_num_bytes": len(sent), "delta_sha256": hashlib.sha256(sent).hexdigest()}
    yield header(whole, **{**plain, **fields})
    yield chunk(0, sent)


NORM = "model.norm.weight"


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


async def test_dry_run(world: World, stub: Stub) -> None:
    name = world.spec.trunk_sources[0]
    fields = {"validate_only": True, "trunk_sha256": {name: world.checkpoint.sha256(name)}}
    done = await stub.PushHead(push(to_file(world.changed(1)), **fields))
    assert (done.head.version, done.num_trunk_tensors_compared) == (0, 1)
    assert_nothing_staged(world)


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
