"""Health: NOT_SERVING until ready, names per service and head, watchers, a hung engine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polyhead.server.rpc import health as health_module
from polyhead.server.rpc.health import Health, watch_engine
from polyhead.server.rpc.methods import SERVICES
from tests.server.fakes import FakeEngine, grpc_server, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_states() -> None:
    health = Health()
    names = ["", *SERVICES]
    assert [health.status(name) for name in names] == [NOT_SERVING] * 6
    assert (health.status("liveness"), health.status("polyhead.v1.head/policy"), health.status("x")) == (SERVING, None, None)
    health.set_heads(["policy"])
    health.set_ready(True)
    assert [health.status(name) for name in [*names, "polyhead.v1.head/policy"]] == [SERVING] * 7
    health.set_heads(["value"])
    assert health.status("polyhead.v1.head/policy") == NOT_SERVING
    health.set_live(False)
    assert [health.status(name) for name in [*names, "liveness", "polyhead.v1.head/value"]] == [NOT_SERVING] * 8


async def test_over_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "MAX_WATCHES", 2)
    async with grpc_server(lambda late: None) as (channel, _, health):
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nope"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        first, second = (stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2))
        assert (await first.read()).status == (await second.read()).status == NOT_SERVING
        third = stub.Watch(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in third:
                pass
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        health.set_ready(True)
        assert (await second.read()).status == SERVING  # the library forgot all watchers of a name when one left
        second.cancel()
        await until(lambda: health._num_watches == 0)
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="polyhead.v1.head/late"))
        assert (await unknown.read()).status == UNKNOWN
        health.set_heads(["late"])
        assert (await unknown.read()).status == SERVING
        unknown.cancel()


async def test_a_hung_engine_takes_the_server_down_until_it_moves_again() -> None:
    health, engine = Health(), FakeEngine()
    health.set_ready(True)
    engine.now = dataclasses.replace(engine.now, num_open=1, last_step_at=time.monotonic() - 6.0)
    watching = asyncio.create_task(watch_engine(health, engine.snapshot, period_s=0.01))
    await until(lambda: (health.status(""), health.status("liveness")) == (NOT_SERVING, NOT_SERVING))
    engine.now = dataclasses.replace(engine.now, num_open=0)
    await until(lambda: (health.status(""), health.status("liveness")) == (SERVING, SERVING))
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
