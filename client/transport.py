"""How calls reach the server: address, credentials, channel options, deadlines and the one retry rule. Knows no call's meaning.

A server on this machine is never looked for behind a proxy, whatever `http_proxy` says. A lost one is looked for every second or two.

Retries, and nothing else is retried:
  UNAVAILABLE            of unary calls, by gRPC itself, a few times within a second
  RESOURCE_EXHAUSTED     by the client, only if the server says when (RetryInfo), a few times, within the deadline
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from polyhead.client.addresses import addresses_of, is_loopback
from polyhead.client.errors import DeadlineExceeded, InvalidArgument, PolyheadError, ResourceExhausted
from polyhead.client.wire.text_check import check_text
from polyhead.v1 import (
    fleet_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    heads_pb2,
    heads_pb2_grpc,
    options_pb2,
    scoring_pb2,
    scoring_pb2_grpc,
    trunk_pb2,
    trunk_pb2_grpc,
)

__all__ = [
    "HEALTH_METHOD",
    "ChannelOwner",
    "Deadline",
    "Endpoint",
    "GuardedIterator",
    "Stubs",
    "health_request",
    "is_serving",
    "retry_delay",
    "why_not_ready",
]

DEFAULT_TIMEOUT_S = 3600.0  # an RL worker may take an optimiser step between two reads
MAX_RECONNECT_MS = 1500  # between two tries to connect, give or take a fifth; gRPC's own two minutes outlast any restart
LOOKUP_TIMEOUT_S = 60.0  # calls that only look something up
MAX_RETRIES = 8  # of RESOURCE_EXHAUSTED
MAX_RECEIVE_BYTES = 256 << 20  # 1024 scored completions with five heads; the server's own limits are lower
HEALTH_METHOD = "/grpc.health.v1.Health/Check"
_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}

def _retryable() -> list[dict[str, str]]:
    """Methods that the contract calls retryable. None of them is a stream: with grpcio 1.85 a stream that is refused while the server
    drains and then exits hangs for ever, past its deadline. Nor is DeleteHead: a second try would find nothing.
    """
    return [
        {"service": service.full_name, "method": method.name}
        for file in (generation_pb2, scoring_pb2, trunk_pb2, heads_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.GetOptions().Extensions[options_pb2.method].retryable
    ]


SERVICE_CONFIG = {"methodConfig": [{"name": _retryable(), "retryPolicy": _RETRY}]}


@dataclass(frozen=True)
class Endpoint:
    """Where the server is and who asks. Checked when made; connects to nothing."""

    target: str  # "host:port", or any gRPC target such as "dns:///polyhead:50051"; a fleet's may name several servers, with commas
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    root_certificates: bytes | None = field(default=None, repr=False)  # PEM; None: the system's
    server_name: str | None = None  # if the certificate names another host than `target`

    def __post_init__(self) -> None:
        check_text(target=self.target, server_name=self.server_name)
        if (
            not isinstance(self.target, str)
            or not self.target
            or "://" in self.target.replace("dns://", "").replace("unix://", "")
        ):
            raise InvalidArgument(f'target must be "host:port": {str(self.target)[:80]!r}', field="target")
        if self.token is not None and not (
            self.token.isascii() and self.token.isprintable() and self.token.strip() == self.token
        ):
            raise InvalidArgument("token holds characters that a header cannot carry, such as a line break", field="token")

        if self.root_certificates is not None and b"-----BEGIN CERTIFICATE-----" not in self.root_certificates:
            raise InvalidArgument("root_certificates holds no PEM certificate", field="root_certificates")

    def of_one_server(self) -> Endpoint:
        """InvalidArgument if it names several."""
        if len(addresses_of(self.target)) != 1:
            hint = "polyhead.client.Fleet takes the addresses of a primary and its followers"
            raise InvalidArgument(f"target must name one server: {self.target[:80]!r}\nhint: {hint}", field="target")
        return self

    def at(self, address: str) -> Endpoint:
        """Another server, with these credentials."""
        return replace(self, target=address)

    def of_each_server(self) -> dict[str, Endpoint]:
        """By address. InvalidArgument if it names none."""
        found = {address: self.at(address) for address in addresses_of(self.target)}
        if not found:
            raise InvalidArgument(f"target names no server: {self.target[:80]!r}", field="target")
        return found

    @property
    def uses_tls(self) -> bool:
        return self.tls or self.root_certificates is not None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def open_channel(self, api: Any) -> Any:
        """A channel of `api`, which is the module grpc or grpc.aio. Connects at the first call."""
        if not self.uses_tls:
            return api.insecure_channel(self.target, options=self._channel_options())
        credentials = grpc.ssl_channel_credentials(root_certificates=self.root_certificates)
        return api.secure_channel(self.target, credentials, options=self._channel_options())

    def _channel_options(self) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = [
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
            ("grpc.max_send_message_length", -1),  # the server's limit decides
            ("grpc.keepalive_time_ms", 60_000),  # finds a dead server under a silent stream
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.initial_reconnect_backoff_ms", 1000),  # less, and each of a call's own retries would connect anew
            ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        ]
        if is_loopback(self.target):
            options.append(("grpc.enable_http_proxy", 0))
        return options + ([("grpc.ssl_target_name_override", self.server_name)] if self.server_name else [])


class Stubs:
    """The five services of one channel (of either API); made with the channel, dropped with it."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.generation: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        self.scoring: Any = scoring_pb2_grpc.ScoringServiceStub(channel)
        self.trunk: Any = trunk_pb2_grpc.TrunkServiceStub(channel)
        self.fleet: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        self.heads: Any = heads_pb2_grpc.HeadServiceStub(channel)
        self.health: Any = channel.unary_unary(
            HEALTH_METHOD, request_serializer=health_request, response_deserializer=is_serving
        )


class ChannelOwner:
    """Opens the channel at the first call, and a new one in a forked child: channels do not survive a fork."""

    def __init__(self, open_channel: Callable[[], Any]) -> None:
        self._open_channel = open_channel
        self._stubs: Stubs | None = None
        self._process_id = 0
        self._inherited: list[Stubs] = []  # of the parent process: neither used nor closed here, and never collected
        self._is_closed = False

    def stubs(self) -> Stubs:
        """Raises InvalidArgument after `close`."""
        if self._is_closed:
            raise InvalidArgument("the client is closed")
        if self._stubs is not None and self._process_id != os.getpid():
            self._inherited.append(self._stubs)
            self._stubs = None
        if self._stubs is None:
            self._stubs, self._process_id = Stubs(self._open_channel()), os.getpid()
        return self._stubs

    def release(self) -> Any | None:
        """The channel to close, if this process opened one; nothing can be called from now on."""
        self._is_closed = True
        stubs, self._stubs = self._stubs, None
        return stubs.channel if stubs is not None and self._process_id == os.getpid() else None


class GuardedIterator(Iterator[Any]):
    """gRPC swallows what a request iterator raises and reports UNKNOWN: keep the true error."""

    def __init__(self, messages: Iterator[Any]) -> None:
        self._messages = messages
        self.failure: Exception | None = None

    def __next__(self) -> Any:
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise


class Deadline:
    """One budget for a call and its retries."""

    def __init__(self, timeout_s: float | None) -> None:
        self._ends_at = None if timeout_s is None else time.monotonic() + timeout_s

    def remaining(self) -> float | None:
        """Seconds left, at least 0; None: no limit."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())


def retry_delay(error: PolyheadError, num_retries: int, deadline: Deadline) -> float:
    """Seconds to wait before the next try. Raises `error` itself if there is none: see the rule above."""
    remaining = deadline.remaining()
    if not isinstance(error, ResourceExhausted) or error.retry_after_s is None or num_retries >= MAX_RETRIES:
        raise error
    if remaining is not None and error.retry_after_s >= remaining:
        raise error
    return error.retry_after_s


def why_not_ready(known: str, error: PolyheadError) -> str:
    """What to say of a server that is waited for: a try that ended early says less than one that failed."""
    return known if known and isinstance(error, DeadlineExceeded) else error.message


def health_request(service: str) -> bytes:
    """grpc.health.v1.HealthCheckRequest by hand (field 1, a string), so that the base install needs no health package."""
    name = service.encode()
    if len(name) > 127:
        raise InvalidArgument("service name is longer than 127 bytes", field="service")
    return b"\x0a" + bytes([len(name)]) + name if name else b""


def is_serving(response: Sequence[int] | bytes) -> bool:
    """grpc.health.v1.HealthCheckResponse: field 1, an enum, 1 is SERVING."""
    return bytes(response) == b"\x08\x01"
