"""What can go wrong, as one tree. Raised by Client and AsyncClient; made from a gRPC status in one place (`from_rpc_error`).

PolyheadError
├── InvalidArgument     an argument is wrong; `field` names it                        before sending, or the server
├── NotFound            a well-formed name that the server does not know              head, pull_head, activate, rule sets
├── AlreadyExists       the same request_id with other content                        push_head, copy_head, activate
├── Aborted             ended by a swap, a cancel or a drain                          generate, score
│   └── Conflict        the active set is not the expected one: read it and retry     activate, update, rollback
├── FailedPrecondition  well-formed, but it does not fit this trunk or this state     push_head, stream().sample
├── ResourceExhausted   queue, memory, quota or disk is full                          any call; `retry_after_s` says when
├── Unavailable         no server listens there, or it starts or drains               any call
├── DeadlineExceeded    `timeout` has passed                                          any call
├── Unauthenticated     no token, or an unknown one                                   any call
├── PermissionDenied    the token's role may not do this                              any call
├── DataLoss            stored or transferred bytes are damaged                       pull_head, push_head, score
├── Unimplemented       reserved by the contract, or the server is older than it       any call
├── Cancelled           the call was cancelled                                        any call
└── Internal            the server's own mistake; it gives an incident id only        any call

A wrong *type* of argument is a TypeError, before anything is sent.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from polyhead.client.addresses import proxy_variable
from polyhead.heads.format import errors as format_errors

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "Conflict",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "PolyheadError",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "as_client_errors",
    "counted_from",
    "from_rpc_error",
]

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request."""

    field: str  # "arms[0].sampling.top_p"
    description: str


class PolyheadError(Exception):
    """Root of every error that the client raises about a call. `code` is the name of the gRPC status code."""

    code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message  # what happened, the value after a colon, then perhaps a line "hint: ..."
        self.violations = tuple(violations)
        self.field = field or (self.violations[0].field if self.violations else "")
        self.reason = reason  # machine-readable case, such as "GENERATION_MISMATCH"
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s  # seconds until a retry is worth it; None: it is not


class InvalidArgument(PolyheadError):
    code = "INVALID_ARGUMENT"


class NotFound(PolyheadError):
    code = "NOT_FOUND"


class AlreadyExists(PolyheadError):
    code = "ALREADY_EXISTS"


class Aborted(PolyheadError):
    code = "ABORTED"


class Conflict(Aborted):
    """The active set is not that of `expected_generation` or `expected_versions`: read it again before you retry."""


class FailedPrecondition(PolyheadError):
    code = "FAILED_PRECONDITION"


class ResourceExhausted(PolyheadError):
    code = "RESOURCE_EXHAUSTED"


class Unavailable(PolyheadError):
    code = "UNAVAILABLE"


class DeadlineExceeded(PolyheadError):
    code = "DEADLINE_EXCEEDED"


class Unauthenticated(PolyheadError):
    code = "UNAUTHENTICATED"


class PermissionDenied(PolyheadError):
    code = "PERMISSION_DENIED"


class DataLoss(PolyheadError):
    code = "DATA_LOSS"


class Unimplemented(PolyheadError):
    code = "UNIMPLEMENTED"


class Cancelled(PolyheadError):
    code = "CANCELLED"


class Internal(PolyheadError):
    code = "INTERNAL"


_BY_CODE: dict[str, type[PolyheadError]] = {
    error.code: error
    for error in (
        InvalidArgument, NotFound, AlreadyExists, Aborted, FailedPrecondition, ResourceExhausted, Unavailable, DeadlineExceeded,
        Unauthenticated, PermissionDenied, DataLoss, Unimplemented, Cancelled, Internal,
    )
}  # fmt: skip
_TLS_HINTS = {
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not trusted: give the one that signed it, root_certificates=",
    "Hostname Verification": "the server's certificate is for another name: connect by that name, or say it with server_name=",
    "WRONG_VERSION_NUMBER": "the server speaks without TLS: leave out tls= and root_certificates=",
    "Socket closed": "does the server want TLS? then give root_certificates=, or tls=True for a public certificate",
}  # by a sign in gRPC's own words
_GENERATION_MISMATCH = "GENERATION_MISMATCH"


def from_rpc_error(error: Any, target: str) -> PolyheadError:
    """The error of a failed call (`grpc.RpcError` of either API) to `target`, with the google.rpc details sent."""
    code: grpc.StatusCode = error.code()
    status = _rich_status(error.trailing_metadata())
    if status is None:
        return _BY_CODE.get(code.name, Internal)(_plain_message(code, error.details() or "", target))
    facts = _facts(status)
    kind = Conflict if facts.get("reason") == _GENERATION_MISMATCH else _BY_CODE.get(code.name, Internal)
    message = _message(status.message or error.details() or code.name)
    if kind is Unauthenticated and "\nhint:" not in message:
        message += "\nhint: give the client a token="
    return kind(message, **facts)


@contextlib.contextmanager
def as_client_errors() -> Iterator[None]:
    """Errors of heads/format, which server and client share, as the client's own of the same name."""
    try:
        yield
    except format_errors.PolyheadError as error:
        kind = next((known for known in _BY_CODE.values() if known.__name__ == type(error).__name__), Internal)
        raise kind(error.message, field=error.field) from None


@contextlib.contextmanager
def counted_from(first: int, name: str) -> Iterator[None]:
    """Of a call that sends a part of a list, from item `first` on: `name[0]` in its errors' fields becomes `name[first]`."""
    try:
        yield
    except PolyheadError as error:
        error.field = _moved(error.field, name, first)
        error.violations = tuple(replace(each, field=_moved(each.field, name, first)) for each in error.violations)
        raise


def _moved(field: str, name: str, by: int) -> str:
    return re.sub(rf"^{name}\[(\d+)\]", lambda found: f"{name}[{by + int(found[1])}]", field)


def _plain_message(code: grpc.StatusCode, details: str, target: str) -> str:
    """gRPC's own words come from the library, not from polyhead: say which address, and what to look at."""
    if code is grpc.StatusCode.UNAVAILABLE:
        proxy = proxy_variable(target)
        usual = "does `polyhead serve` run there, with or without TLS?"
        if proxy:
            usual += f" {proxy} is set, so the call goes through a proxy: to connect directly, add the host to no_proxy"
        hint = next((hint for sign, hint in _TLS_HINTS.items() if sign in details), usual)
        return f"no answer from the server: {target} ({details[:400]})\nhint: {hint}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer in time: {target}\nhint: give the call a longer timeout="
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"the server does not know this call: {target}\nhint: are client and server of one version?"
    return _message(details) or code.name


def _message(text: str) -> str:
    """The server escapes control characters; its own line break before a hint is meant as one."""
    return text.replace("\\nhint:", "\nhint:")


def _rich_status(trailers: Iterable[tuple[str, Any]] | None) -> Any | None:
    for key, value in trailers or ():
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except Exception:  # protobuf's DecodeError: a proxy's bytes, not ours
                return None
    return None


def _facts(status: Any) -> dict[str, Any]:
    """Keyword arguments of PolyheadError, read off the details."""
    facts: dict[str, Any] = {}
    for packed in status.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = _unpacked(packed, error_details_pb2.ErrorInfo())
            facts |= {"reason": info.reason, "metadata": dict(info.metadata)}
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = _unpacked(packed, error_details_pb2.BadRequest())
            facts["violations"] = tuple(FieldViolation(v.field, v.description) for v in request.field_violations)
        elif packed.Is(error_details_pb2.PreconditionFailure.DESCRIPTOR):
            failure = _unpacked(packed, error_details_pb2.PreconditionFailure())
            facts["field"] = failure.violations[0].subject if failure.violations else ""
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            facts["retry_after_s"] = _unpacked(packed, error_details_pb2.RetryInfo()).retry_delay.ToTimedelta().total_seconds()
    return facts


def _unpacked(packed: Any, message: Any) -> Any:
    packed.Unpack(message)
    return message
