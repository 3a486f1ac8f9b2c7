"""What can go wrong, as one tree. Raised everywhere in heads and server; turned into a gRPC status in one place (server/rpc/errors.py).

PolyheadError
├── InvalidArgument     the caller's input is wrong; names the field                 validation, head file checks
├── NotFound            a well-formed name that is unknown                           store, registry, rule sets
├── AlreadyExists       the same request id with other content                       store
├── Conflict            the active set moved on since `expected_generation`          store
├── FailedPrecondition  well-formed, but it does not fit this trunk or this state    manifest, registry
├── ResourceExhausted   queue, memory, quota or disk is full                         admission, registry, store
├── DataLoss            stored or computed numbers are damaged                       store, sampler
├── Unavailable         starting or draining                                         server
└── Aborted             ended by a swap, a cancel or a deadline                      engine

`code` is the name of the gRPC status code, `reason` the machine-readable name of the case.
Messages say what happened, then the value, then what to do; they never hold a path or another exception's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class PolyheadError(Exception):
    """Root of every error that a caller may see."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field  # dotted path of the request field at fault, such as "arms[0].sampling.top_p"
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s  # None: a retry is not worth it


class InvalidArgument(PolyheadError):
    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"


class NotFound(PolyheadError):
    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class AlreadyExists(PolyheadError):
    code = "ALREADY_EXISTS"
    reason = "REQUEST_ID_REUSED"


class Conflict(PolyheadError):
    code = "ABORTED"
    reason = "GENERATION_MISMATCH"


class FailedPrecondition(PolyheadError):
    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class ResourceExhausted(PolyheadError):
    code = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"


class DataLoss(PolyheadError):
    code = "DATA_LOSS"
    reason = "DATA_LOSS"


class Unavailable(PolyheadError):
    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class Aborted(PolyheadError):
    code = "ABORTED"
    reason = "ABORTED"
