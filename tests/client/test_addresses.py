"""How a server is reached: proxies in the environment, the pace of reconnecting, and what is said where nobody answers."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.client import AsyncClient, AsyncFleet, Client, Fleet, errors
from polyhead.client.addresses import addresses_of, is_loopback
from polyhead.client.transport import Endpoint
from tests.client.fake_server import FakeServer

MOST_MS = 2000  # between two tries to connect


@pytest.mark.parametrize(
    ("target", "is_local"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("localhost:50051", True),
        ("dns:///localhost:1", True),
        ("dns:localhost:1", True),
        ("[::1]:50051", True),
        ("ipv6:[::1]:1", True),
        ("unix:/run/polyhead", True),
        ("10.0.0.1:50051", False),
        ("localhost.example.org:50051", False),
        ("dns:///gpu-7:50051", False),
        ("[2001:db8::1]:50051", False),
    ],
)
def test_which_addresses_are_this_machine(target: str, is_local: bool) -> None:
    assert is_loopback(target) is is_local


@pytest.mark.parametrize(
    ("target", "addresses"),
    [
        ("a:1", ("a:1",)),
        ("a:1, b:1,,a:1", ("a:1", "b:1")),
        ("dns:50051,b:1", ("dns:50051", "b:1")),  # a machine of this name
        ("ipv4:10.0.0.1:1,10.0.0.2:1", ("ipv4:10.0.0.1:1,10.0.0.2:1",)),  # one target of gRPC's own
        ("dns:///a:1", ("dns:///a:1",)),
        (",", ()),
    ],
)
def test_which_servers_a_target_names(target: str, addresses: tuple[str, ...]) -> None:
    assert addresses_of(target) == addresses


def test_several_addresses_are_a_fleets() -> None:
    """gRPC would look for a machine of that name, for a minute."""
    for kind in (Client, AsyncClient):
        with pytest.raises(errors.InvalidArgument, match=r"target must name one server: 'a:1,b:1'\nhint: polyhead.client.Fleet") as refused:
            kind("a:1,b:1")
        assert refused.value.field == "target"
    for fleet in (Fleet, AsyncFleet):
        with pytest.raises(errors.InvalidArgument, match="target names no server: ','"):
            fleet(",")


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC sends every call through http_proxy: a server on loopback could not be reached on machines that have one."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def status() -> int:
        async with AsyncClient(server.target, timeout=10) as client:
            return (await client.status()).generation

    with Client(server.target, timeout=10) as client:
        assert client.status().generation == 3
    assert server.run(status()) == 3


def test_an_error_beyond_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Client("192.0.2.1:50051", timeout=10) as client, pytest.raises(errors.Unavailable, match="http_proxy is set"):
        client.status()


def test_a_lost_server_is_looked_for_every_second_or_two() -> None:
    """gRPC's own back-off grows to two minutes: workers stood still long after a server was back."""
    seen: dict[str, int] = {}

    class Api:
        @staticmethod
        def insecure_channel(target: str, options: Any) -> None:
            seen.update((key, value) for key, value in options if "reconnect" in key)

    Endpoint("h:1").open_channel(Api)
    assert 0 < seen["grpc.initial_reconnect_backoff_ms"] <= seen["grpc.max_reconnect_backoff_ms"] <= MOST_MS / 1.2  # the jitter is a fifth


@pytest.mark.parametrize("client_type", [Client, AsyncClient])
def test_waiting_for_nobody_says_what_any_call_says(server: FakeServer, client_type: Any) -> None:
    """`health` on a wrong port said "no answer in time", which is true of everything."""
    said = r"not ready after 0\.5 s: no answer from the server: 127\.0\.0\.1:1 .*\nhint: does `polyhead serve` run"

    async def wait() -> None:
        async with AsyncClient("127.0.0.1:1") as client:
            await client.wait_ready(0.5)

    with pytest.raises(errors.DeadlineExceeded, match=said):
        server.run(wait()) if client_type is AsyncClient else Client("127.0.0.1:1").wait_ready(0.5)
