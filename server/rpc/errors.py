"""The one map from an error to a gRPC status with google.rpc details. It is given the error alone, no handler.

Whatever is not a PolyheadError becomes INTERNAL with an incident id; its text goes to the log alone, never to a caller.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from polyhead.heads.format.errors import FailedPrecondition, PolyheadError, Unavailable
from polyhead.heads.store.io_errors import StoreFull, StoreIoError

DOMAIN = "polyhead.dev"
MAX_MESSAGE = 1024  # characters; metadata of a reply stays well under 4 KB
MAX_VALUE = 256

log = logging.getLogger(__name__)


class Unauthenticated(PolyheadError):
    """No token, or an unknown one. Raised by auth."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class PermissionDenied(PolyheadError):
    """A known token whose role may not call the method, or not ask for so much. Raised by auth and caps."""

    code = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"


class DeadlineExceeded(PolyheadError):
    """The caller's deadline, or the server's own limit, has passed; or an upload came too slowly. Raised by the interceptor and uploads."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class NotPrimary(FailedPrecondition):
    """A change was asked of a follower, which copies its primary's. Raised by the interceptor and the fleet's servicer."""

    reason = "NOT_PRIMARY"


class ReplicaMissing(Unavailable):
    """An activation requires a replica that does not answer: nothing was changed. Raised by the fleet's rounds.

    gRPC's own retries are told off: each would take a round's whole time again, and the caller has to decide.
    """

    reason = "REPLICA_MISSING"


def not_primary(primary: str) -> NotPrimary:
    """Says where to go."""
    hint = f"ask the primary: {primary}"
    return NotPrimary(f"this server follows another one and changes nothing by itself\nhint: {hint}", metadata={"primary": primary})


def to_polyhead_error(error: BaseException) -> PolyheadError:
    """A PolyheadError as it is; anything else is logged under a new incident id and becomes INTERNAL.

    What the store's disk refused is logged, too: the caller learns of it, but only the operator can mend it.
    """
    if isinstance(error, PolyheadError):
        if isinstance(error, (StoreFull, StoreIoError)):
            log.error("%s", error.message.replace("\n", "; "))
        return error
    incident_id = uuid.uuid4().hex[:12]
    log.error("incident %s", incident_id, exc_info=error)
    return PolyheadError(f"internal error, incident {incident_id}", metadata={"incident_id": incident_id})


def status_code(error: PolyheadError) -> grpc.StatusCode:
    return grpc.StatusCode[error.code]


def to_status(error: PolyheadError) -> Any:
    """google.rpc.Status: exactly one ErrorInfo, then what the code calls for, each detail type at most once."""
    details = [_error_info(error), *_code_details(error)]
    if error.retry_after_s is not None:
        details.append(_retry_info(error.retry_after_s))
    packed = [_pack(detail) for detail in details]
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.code), message=_printable(error.message, MAX_MESSAGE), details=packed
    )


def trailing_metadata(error: PolyheadError) -> tuple[tuple[str, str | bytes], ...]:
    """The status for `grpc-status-details-bin`, and the pushback that gRPC's built-in retry honours (gRFC A6)."""
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", to_status(error).SerializeToString())]
    if isinstance(error, ReplicaMissing):
        trailers.append(("grpc-retry-pushback-ms", "-1"))
    elif error.retry_after_s is not None:
        trailers.append(("grpc-retry-pushback-ms", str(max(0, round(error.retry_after_s * 1000)))))
    return tuple(trailers)


def _error_info(error: PolyheadError) -> Any:
    metadata = {key[:64]: _printable(str(value), MAX_VALUE) for key, value in list(error.metadata.items())[:8]}
    return error_details_pb2.ErrorInfo(reason=error.reason[:63], domain=DOMAIN, metadata=metadata)


def _code_details(error: PolyheadError) -> list[Any]:
    if error.code not in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"):
        return []
    description = _printable(error.message, MAX_MESSAGE)
    field = _printable(error.field, MAX_VALUE)
    if error.code == "INVALID_ARGUMENT":
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    if error.code == "NOT_FOUND":
        name = _printable(error.metadata.get("name", field), MAX_VALUE)
        return [error_details_pb2.ResourceInfo(resource_type="polyhead.dev/Head", resource_name=name, description=description)]
    violation = error_details_pb2.PreconditionFailure.Violation(type=error.reason, subject=field, description=description)
    return [error_details_pb2.PreconditionFailure(violations=[violation])]


def _retry_info(seconds: float) -> Any:
    nanos = max(0, round(seconds * 1e9))
    delay = duration_pb2.Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _pack(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _printable(text: str, limit: int) -> str:
    """Escape what a terminal or a log would act on: control characters, lone surrogates, bidi marks."""
    lines = [line if line.isprintable() else _escaped(line) for line in text[:limit].split("\n")]
    escaped = "\\n".join(lines)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def _escaped(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
