"""What a caller sees when something goes wrong, over a real connection: never UNKNOWN, never an exception's text."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from polyhead.heads.format.errors import (
    Aborted,
    Conflict,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PolyheadError,
    ResourceExhausted,
    Unavailable,
)
from polyhead.server.rpc.auth import Authenticator, Role, Token
from polyhead.server.rpc.errors import to_status
from polyhead.server.rpc.interceptors import current_call
from polyhead.v1 import heads_pb2 as pb
from polyhead.v1 import heads_pb2_grpc
from tests.server.fakes import grpc_server

CANARY = "/srv/secret token=abc"
SERVICE = "/polyhead.v1.HeadService"
ERRORS = [
    InvalidArgument("bad", field="a.b"),
    NotFound("none", metadata={"name": "x@1"}),
    Conflict("moved", metadata={"current_generation": "3"}),
    FailedPrecondition("no", field="f"),
    ResourceExhausted("full", retry_after_s=1.5),
    DataLoss("lost"),
    Unavailable("away", retry_after_s=0.0),
    Aborted("ended"),
    PolyheadError("internal"),
]


class Broken(heads_pb2_grpc.HeadServiceServicer):
    """Does what `act` says, in each of the three shapes of a call."""

    error: BaseException | None = None
    seconds = 0.0
    seen: Any = None

    weights: Any = None

    async def _act(self) -> None:
        self.weights = weakref.ref(weights := Broken())  # noqa: F841  what a call works on, such as a head that is refused
        self.seen = current_call.get()
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error

    async def GetHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._act()
        return pb.GetHeadResponse()

    async def PullHead(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]  # noqa: N802
        yield pb.PullHeadResponse()
        await self._act()

    async def WatchHeads(self, request: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await context.write(pb.WatchHeadsResponse())
        await self._act()

    async def PushHead(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        async for _ in request_iterator:
            pass
        await self._act()
        return pb.PushHeadResponse()

    async def CopyHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        return None  # cannot be serialised


async def finish(call: Any) -> None:
    if not hasattr(call, "__aiter__"):
        await call
        return
    async for _ in call:
        pass


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish(call)
    assert caught.value.code() is not grpc.StatusCode.UNKNOWN
    return caught.value


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """google.rpc details by type name; each type at most once, ErrorInfo exactly once."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    names = [packed.type_url.rpartition(".")[2] for packed in status.details]
    assert len(set(names)) == len(names)
    assert "ErrorInfo" in names
    found = {}
    for name, packed in zip(names, status.details, strict=True):
        found[name] = getattr(error_details_pb2, name)()
        packed.Unpack(found[name])
    assert found["ErrorInfo"].domain == "polyhead.dev"
    return found


def served(broken: Broken, **kwargs: Any) -> Any:
    return grpc_server(lambda late: heads_pb2_grpc.add_HeadServiceServicer_to_server(broken, late), **kwargs)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_our_errors_in_every_shape(error: PolyheadError) -> None:
    broken = Broken()
    broken.error = error
    async with served(broken) as (channel, _, _):
        stub = heads_pb2_grpc.HeadServiceStub(channel)
        for call in (
            stub.GetHead(pb.GetHeadRequest()),
            stub.PullHead(pb.PullHeadRequest()),
            stub.WatchHeads(pb.WatchHeadsRequest()),
            stub.PushHead(iter([pb.PushHeadRequest()])),
        ):
            caught = await failure(call)
            assert (caught.code().name, caught.details()) == (error.code, error.message)
            details = details_of(caught)
            assert details["ErrorInfo"].reason == error.reason
            assert dict(details["ErrorInfo"].metadata) == error.metadata
            assert ("RetryInfo" in details) == (error.retry_after_s is not None)
            if isinstance(error, InvalidArgument):
                assert details["BadRequest"].field_violations[0].field == "a.b"
            if isinstance(error, NotFound):
                assert details["ResourceInfo"].resource_name == "x@1"
            if isinstance(error, ResourceExhausted):
                assert dict(caught.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "1500"


@pytest.mark.parametrize("error", [RuntimeError(CANARY), KeyError(CANARY), TimeoutError(CANARY), AssertionError(CANARY)])
async def test_unforeseen_errors_reveal_nothing(error: Exception) -> None:
    broken = Broken()
    broken.error = error
    async with served(broken) as (channel, _, _):
        stub = heads_pb2_grpc.HeadServiceStub(channel)
        for call in (stub.GetHead(pb.GetHeadRequest()), stub.PullHead(pb.PullHeadRequest()), stub.PushHead(iter([]))):
            caught = await failure(call)
            assert caught.code() is grpc.StatusCode.INTERNAL
            assert "incident" in (caught.details() or "")
            assert CANARY not in repr(caught)
            assert details_of(caught)["ErrorInfo"].metadata["incident_id"] in (caught.details() or "")


async def test_an_answer_that_cannot_be_serialised_is_internal() -> None:
    async with served(Broken()) as (channel, _, _):
        caught = await failure(heads_pb2_grpc.HeadServiceStub(channel).CopyHead(pb.CopyHeadRequest()))
        assert caught.code() is grpc.StatusCode.INTERNAL


async def test_malformed_messages_are_invalid() -> None:
    async with served(Broken()) as (channel, _, _):
        bad = b"\x0a\xff\xff\xff"
        for call in (
            channel.unary_unary(f"{SERVICE}/GetHead")(bad),
            channel.unary_stream(f"{SERVICE}/PullHead")(bad),
            channel.stream_unary(f"{SERVICE}/PushHead")(iter([bad])),
            channel.unary_unary("/grpc.health.v1.Health/Check")(bad),
        ):
            caught = await failure(call)
            assert caught.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_deadlines() -> None:
    broken = Broken()
    broken.seconds = 30.0
    async with served(broken, max_call_s=0.2) as (channel, interceptor, _):
        stub = heads_pb2_grpc.HeadServiceStub(channel)
        for call in (stub.GetHead(pb.GetHeadRequest()), stub.GetHead(pb.GetHeadRequest(), timeout=0.1)):
            assert (await failure(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await interceptor.wait_idle(2.0)


async def test_request_ids_and_roles_reach_the_handler() -> None:
    broken = Broken()
    auth = Authenticator((Token.of(Role.WORKER, "worker-token-0123456789"),))
    async with served(broken, authenticator=auth) as (channel, _, _):
        stub = heads_pb2_grpc.HeadServiceStub(channel)
        token = ("authorization", "Bearer worker-token-0123456789")
        call = stub.GetHead(pb.GetHeadRequest(), metadata=(token, ("x-request-id", "run-7")))
        await call
        assert (broken.seen.request_id, broken.seen.caller.role) == ("run-7", Role.WORKER)
        assert dict(await call.trailing_metadata())["x-request-id"] == "run-7"
        await stub.GetHead(pb.GetHeadRequest(), metadata=(token, ("x-request-id", "a b!")))
        assert len(broken.seen.request_id) == 32


async def test_without_a_token_nothing_is_parsed() -> None:
    auth = Authenticator((Token.of(Role.WORKER, "worker-token-0123456789"),))
    async with served(Broken(), authenticator=auth) as (channel, _, _):
        caught = await failure(channel.unary_unary(f"{SERVICE}/GetHead")(b"\xff"))
        assert caught.code() is grpc.StatusCode.UNAUTHENTICATED
        caught = await failure(
            channel.stream_unary(f"{SERVICE}/PushHead")(
                iter([b""]), metadata=(("authorization", "Bearer worker-token-0123456789"),)
            )
        )
        assert caught.code() is grpc.StatusCode.PERMISSION_DENIED
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString
        )
        assert (await check(b"")).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_draining_refuses_new_calls_and_lets_running_ones_finish() -> None:
    broken = Broken()
    broken.seconds = 0.3
    async with served(broken) as (channel, interceptor, _):
        stub = heads_pb2_grpc.HeadServiceStub(channel)
        running = asyncio.ensure_future(stub.GetHead(pb.GetHeadRequest()))
        while not interceptor.num_in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        interceptor.drain()
        caught = await failure(stub.GetHead(pb.GetHeadRequest()))
        assert caught.code() is grpc.StatusCode.UNAVAILABLE
        assert "RetryInfo" in details_of(caught)
        assert await interceptor.wait_idle(5.0)
        assert isinstance(await running, pb.GetHeadResponse)


async def test_before_it_is_open_calls_are_unavailable_and_unknown_methods_unimplemented() -> None:
    async with served(Broken(), is_open=False) as (channel, _, _):
        stub = heads_pb2_grpc.HeadServiceStub(channel)
        for call in (
            stub.GetHead(pb.GetHeadRequest()),
            stub.PullHead(pb.PullHeadRequest()),
            stub.PushHead(iter([pb.PushHeadRequest()])),
        ):
            assert (await failure(call)).code() is grpc.StatusCode.UNAVAILABLE
        caught = await failure(channel.unary_unary(f"{SERVICE}/Backdoor")(b""))
        assert caught.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_cancel_reaches_the_handler() -> None:
    broken = Broken()
    broken.seconds = 30.0
    async with served(broken) as (channel, interceptor, _):
        call = heads_pb2_grpc.HeadServiceStub(channel).PullHead(pb.PullHeadRequest())
        await call.read()
        call.cancel()
        assert await interceptor.wait_idle(2.0)


def test_messages_are_bounded_and_printable() -> None:
    status = to_status(InvalidArgument("\u202e\x00" + "x" * 5000, field="f" * 5000, metadata={"k": "v" * 5000}))
    assert status.message.isprintable()
    assert len(status.SerializeToString()) < 4000


async def test_a_failed_call_keeps_nothing_that_it_worked_on() -> None:
    """gRPC holds on to the last call's abort: its traceback led to the weights of a head that had been refused, for as long as
    the server was idle.
    """
    broken = Broken()
    broken.error = DataLoss("canary")
    async with served(broken) as (channel, _, _):
        stub = heads_pb2_grpc.HeadServiceStub(channel)
        gc.collect()
        gc.disable()
        try:
            for method, request in (
                (stub.GetHead, pb.GetHeadRequest()),
                (stub.PullHead, pb.PullHeadRequest()),
                (stub.PushHead, iter([])),
            ):
                await failure(method(request))
                assert broken.weights() is None
        finally:
            gc.enable()
