"""Errors, the retry rule, deadlines, credentials, health, forks."""

from __future__ import annotations

import os
import subprocess
import sys

import grpc
import pytest

from polyhead.client import AsyncClient, Client, errors
from polyhead.client.transport import Endpoint, health_request
from tests.client.fake_server import FakeServer
from tests.client.fake_state import rich_error

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "code",
    [
        code
        for code in grpc.StatusCode
        if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.OUT_OF_RANGE)
    ],
)
def test_each_status_code_has_its_error(client: Client, server: FakeServer, code: grpc.StatusCode) -> None:
    server.failures["GetHead"] = [rich_error(code, "why")] * 4
    with pytest.raises(errors.PolyheadError, match=r"^why(\nhint: give the client a token=)?$") as caught:
        client.head("policy")
    assert caught.value.code == code.name
    assert type(caught.value) is not errors.PolyheadError


def test_details_are_parsed(client: Client, server: FakeServer) -> None:
    message = "top_p must lie in (0, 1]: 2\\nhint: 1 keeps all"
    server.failures["Generate"] = [rich_error(grpc.StatusCode.INVALID_ARGUMENT, message, field="arms[0].sampling.top_p")]
    with pytest.raises(errors.InvalidArgument) as caught:
        client.generate(["x"], top_p=2)
    assert caught.value.field == "arms[0].sampling.top_p"
    assert caught.value.violations[0].description.startswith("top_p")
    assert caught.value.metadata == {"n": "1"}
    assert str(caught.value).splitlines()[1] == "hint: 1 keeps all"


def test_stale_generation_is_a_conflict(client: Client, server: FakeServer) -> None:
    server.failures["ActivateHeads"] = [rich_error(grpc.StatusCode.ABORTED, "moved on", reason="GENERATION_MISMATCH")]
    with pytest.raises(errors.Conflict):
        client.activate({"policy": 7}, expected_generation=2)


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_full_queue_is_retried_only_with_retry_info(client: Client, server: FakeServer, method: str) -> None:
    def call() -> object:
        return client.head("policy") if method == "unary" else client.generate(["x"])

    name = "GetHead" if method == "unary" else "Generate"
    server.failures[name] = [rich_error(FULL, "full", retry_after_s=0.01)] * 2
    call()
    assert len(server.requests[name]) == 3
    server.failures[name] = [rich_error(FULL, "full")]
    with pytest.raises(errors.ResourceExhausted) as caught:
        call()
    assert caught.value.retry_after_s is None
    assert len(server.requests[name]) == 4


def test_retries_end_at_the_limit_and_at_the_deadline(client: Client, server: FakeServer) -> None:
    server.failures["GetHead"] = [rich_error(FULL, "full", retry_after_s=0.001)] * 100
    with pytest.raises(errors.ResourceExhausted):
        client.head("policy")
    assert len(server.requests["GetHead"]) == 9
    server.failures["Generate"] = [rich_error(FULL, "full", retry_after_s=0.9)]
    with pytest.raises(errors.ResourceExhausted) as caught:
        client.generate(["x"], timeout=0.5)
    assert caught.value.retry_after_s == pytest.approx(0.9)


def test_unavailable_is_retried_by_grpc_before_the_first_message(client: Client, server: FakeServer) -> None:
    server.failures["GetHead"] = [rich_error(grpc.StatusCode.UNAVAILABLE, "starting")] * 2
    assert client.head("policy").version == 7
    server.failures["DeleteHead"] = [rich_error(grpc.StatusCode.UNAVAILABLE, "starting")]
    with pytest.raises(errors.Unavailable):
        client.delete_head("policy@1")  # has no request id: a second try would answer NOT_FOUND
    assert len(server.requests["DeleteHead"]) == 1


def test_retried_change_keeps_its_request_id(client: Client, server: FakeServer) -> None:
    server.failures["ActivateHeads"] = [rich_error(FULL, "full", retry_after_s=0.01)]
    client.activate({"policy": 7})
    first, second = server.requests["ActivateHeads"]
    assert first.request_id == second.request_id
    assert len(first.request_id) == 36


def test_nobody_there_is_said_at_once_with_the_address() -> None:
    with (
        Client("127.0.0.1:1") as nobody,
        pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:1 .*\nhint: does `polyhead serve` run"),
    ):
        nobody.head("policy")


def test_token_goes_out_and_stays_out_of_repr(server: FakeServer) -> None:
    with Client(server.target, token="s3cret") as client:
        client.head("policy")
    assert server.metadata["authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(Endpoint("h:1", token="s3cret"))
    with pytest.raises(errors.InvalidArgument, match="line break"):
        Client("h:1", token="a\nb")


def test_target_is_checked() -> None:
    with pytest.raises(errors.InvalidArgument, match="host:port"):
        Client("http://localhost:50051")


def test_wait_ready(client: Client, server: FakeServer) -> None:
    client.wait_ready(5)
    server.run(_aio_wait_ready(server.target))
    server.is_serving = False
    with pytest.raises(errors.DeadlineExceeded, match="NOT_SERVING"):
        client.wait_ready(0.2)


async def _aio_wait_ready(target: str) -> None:
    async with AsyncClient(target) as client:
        await client.wait_ready(5)


def test_health_request_is_the_real_message() -> None:
    health = pytest.importorskip("grpc_health.v1.health_pb2")
    assert health_request("a.b") == health.HealthCheckRequest(service="a.b").SerializeToString()
    assert health_request("") == b""


def test_forked_child_opens_its_own_channel(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.head("policy")
    before = client._connection._owner.stubs()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert client._connection._owner.stubs() is not before


def test_closed_client_says_so(server: FakeServer) -> None:
    client = Client(server.target)
    client.close()
    with pytest.raises(errors.InvalidArgument, match="closed"):
        client.status()


def test_import_is_light() -> None:
    """The base install has no torch, transformers or typer, and importing opens nothing."""
    code = (
        "import sys, polyhead.client\n"
        "heavy = {'torch', 'transformers', 'typer', 'rich'}\n"
        "heavy |= {'polyhead.client.cli.app', 'polyhead.heads.model', 'polyhead.heads.store', 'polyhead.server'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
