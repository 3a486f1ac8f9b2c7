"""The fake server's state: what it was sent, what it holds, errors to raise; and errors as polyhead's server sends them."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from polyhead.v1 import (
    heads_pb2,
    trunk_pb2,
)


def rich_error(
    code: grpc.StatusCode, message: str, *, reason: str = "", field: str = "", retry_after_s: float | None = None
) -> Any:
    """(code, message, trailers) as polyhead's server sends them."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason or code.name, domain="polyhead.dev", metadata={"n": "1"})]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after_s is not None:
        delay = duration_pb2.Duration(nanos=int(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    return code, message, (("grpc-status-details-bin", status.SerializeToString()),)


class FakeState:
    """What all services of the fake server share."""

    def __init__(self) -> None:
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self.metadata: dict[str, str] = {}
        self.failures: dict[str, list[Any]] = defaultdict(list)  # method -> errors to raise, first to last, before anything is sent
        self.cancelled = threading.Event()
        self.files: dict[str, bytes] = {}
        self.records: list[heads_pb2.HeadVersion] = []
        self.fits: list[trunk_pb2.OodFit] = []
        self.generations = [heads_pb2.Generation(number=3, parent=2, heads={"policy": 7}, note="start")]
        self.tied = True
        self.is_serving = True
        self.endless = False  # Generate sends pieces until it is cancelled

    async def _took(self, method: str, request: Any, context: Any) -> None:
        self.requests[method].append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.failures[method]:
            code, message, trailers = self.failures[method].pop(0)
            await context.abort(code, message, trailers)
