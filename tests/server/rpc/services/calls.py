"""Calls of HeadService as tests make them: whole pushes, deltas, and what a refusal names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from polyhead.server.versions.head_loader import to_file
from polyhead.v1 import heads_pb2 as pb
from polyhead.v1 import heads_pb2_grpc
from tests.server.fakes import World

Stub = heads_pb2_grpc.HeadServiceStub


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


def num_staged(world: World) -> int:
    return len(list((Path(world.store.path) / "staging").iterdir()))


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
