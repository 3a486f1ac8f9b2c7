"""Connections that say nothing: they are counted, closed after a while, and never take what others need."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import urllib.request
from collections.abc import Iterator

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polyhead.server.config import ServeConfig
from polyhead.server.metrics import metrics_http
from polyhead.server.metrics.metrics import Metrics
from polyhead.server.rpc import connections, listen
from polyhead.server.rpc.auth import Authenticator
from polyhead.server.rpc.handlers import LateHandlers
from polyhead.server.rpc.health import Health
from polyhead.server.rpc.interceptors import CallInterceptor
from polyhead.server.rpc.unread import Unread

HANDSHAKE = ("grpc.server_handshake_timeout_ms", "grpc.http2.settings_timeout")


@contextlib.contextmanager
def silent(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections that are opened and never used."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
        for connection in opened:
            connection.settimeout(20.0)
        yield opened


def wait_until_closed(connection: socket.socket) -> None:
    """By the other side; it may have said something before."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1024):
            pass


def scrape(port: int) -> str:
    return str(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode())


def test_silent_connections_to_the_metrics_make_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each held a thread and a descriptor for ever."""
    monkeypatch.setattr(metrics_http, "MAX_CONNECTIONS", 3)
    server = metrics_http.serve_metrics(Metrics().registry, "127.0.0.1", 0)
    try:
        with silent(server.port, 5) as opened:
            for connection in opened[:2]:
                wait_until_closed(connection)
            assert "polyhead_serving" in scrape(server.port)
            wait_until_closed(opened[2])
    finally:
        server.close()


def test_a_metrics_connection_that_stays_silent_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_http._Handler, "timeout", 0.05)
    server = metrics_http.serve_metrics(Metrics().registry, "127.0.0.1", 0)
    try:
        with silent(server.port, 1) as [connection]:
            wait_until_closed(connection)
    finally:
        server.close()


async def test_silent_connections_leave_room_and_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing bounded them but the process's descriptors, and each could stay for two minutes."""
    limit = 8
    monkeypatch.setattr(listen, "max_connections", lambda descriptors: limit)
    monkeypatch.setattr(listen, "SERVER_OPTIONS", tuple((key, 300 if key in HANDSHAKE else value) for key, value in listen.SERVER_OPTIONS))
    interceptor = CallInterceptor(Authenticator(), 30.0, lambda *_: None, Unread(1 << 30, 900.0))
    server = listen.make_server(ServeConfig(), interceptor, Health(), LateHandlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(health_pb2.HealthCheckRequest())
            with silent(port, 3 * limit) as opened:
                await asyncio.gather(*(asyncio.to_thread(wait_until_closed, connection) for connection in opened[limit + 1 :]))
                await stub.Check(health_pb2.HealthCheckRequest())
                await asyncio.gather(*(asyncio.to_thread(wait_until_closed, connection) for connection in opened))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    finally:
        await server.stop(0)


@pytest.mark.parametrize(("descriptors", "most"), [(256, 128), (512, 256), (1024, 768), (1 << 20, connections.MAX_CONNECTIONS)])
def test_the_reserve(descriptors: int, most: int) -> None:
    assert connections.max_connections(descriptors) == most


@pytest.mark.parametrize(
    ("soft", "hard", "allowed"), [(1024, 4096, 4096), (1024, 1 << 20, 4352), (1024, -1, 4352), (1 << 16, 1 << 16, 1 << 16), (-1, -1, 4352)]
)
def test_the_limit_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, allowed: int) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: told.append(limits))
    assert connections.raise_descriptor_limit() == allowed
    assert told == ([(allowed, hard)] if 0 <= soft < allowed else [])


def test_a_limit_that_cannot_be_raised_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert connections.raise_descriptor_limit() == 1024
