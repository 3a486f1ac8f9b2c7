"""buf curl, with reflection and no .proto file at hand, reaches every unary call of every service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import MethodDescriptor

from polyhead.v1 import generation_pb2, heads_pb2, scoring_pb2, trunk_pb2
from tests.conftest import AuditedServer

FILES = (generation_pb2, heads_pb2, scoring_pb2, trunk_pb2)
# A request worth an answer, where an empty one is refused. Both are told apart from a call that nobody answers.
REQUESTS = {
    "Score": {"items": [{"prompt": {"text": "a"}, "text": "b"}], "score": {"heads": ["reference"]}},
    "Tokenize": {"prompt": {"text": "Hello"}},
    "GetHead": {"head": "policy"},
    "CopyHead": {"source": "policy@1", "target": "copied"},
}


def methods() -> list[MethodDescriptor]:
    services = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
    return [method for service in services for method in service.methods if not method.client_streaming and not method.server_streaming]


def buf_curl(server: AuditedServer, method: str, body: object) -> subprocess.CompletedProcess[str]:
    return buf("--data", json.dumps(body), f"http://{server.address}/{method}")


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name.removeprefix("polyhead.v1."))
def test_every_unary_call_is_reached(audited_server: AuditedServer, method: MethodDescriptor) -> None:
    """JSON, or a status that says what was wrong: never UNKNOWN, UNIMPLEMENTED or INTERNAL."""
    done = buf_curl(audited_server, f"{method.containing_service.full_name}/{method.name}", REQUESTS.get(method.name, {}))
    if done.returncode == 0:
        assert isinstance(json.loads(done.stdout), dict)
        return
    assert done.stderr.startswith("{"), done.stderr  # else the call was never made
    status = json.loads(done.stderr)
    assert status["code"] in ("invalid_argument", "not_found", "failed_precondition"), status
    assert status["message"]
    assert status["details"], "a status without google.rpc details"
    assert method.name not in REQUESTS, status


def test_health_is_reached(audited_server: AuditedServer) -> None:
    done = buf_curl(audited_server, "grpc.health.v1.Health/Check", {})
    assert json.loads(done.stdout) == {"status": "SERVING"}, done.stderr


def test_services_are_listed(audited_server: AuditedServer) -> None:
    """`buf curl --list-methods` names every method, streaming ones too."""
    done = buf("--list-methods", f"http://{audited_server.address}")
    services = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
    expected = {f"{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert expected <= set(re.findall(r"[\w.]+/\w+", done.stdout)), done.stderr
