"""The gRPC side of a server: options, port, TLS, and which servicer answers what. Knows nothing of start and end."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.server.config import ServeConfig
from polyhead.server.process.services import Services
from polyhead.server.rpc.connections import HANDSHAKE_MS, MAX_CONNECTIONS, max_connections, raise_descriptor_limit
from polyhead.server.rpc.handlers import LateHandlers
from polyhead.server.rpc.health import Health
from polyhead.server.rpc.interceptors import CallInterceptor
from polyhead.server.rpc.methods import SERVICES
from polyhead.server.rpc.services.call import CallRunner
from polyhead.server.rpc.services.fleet import FleetServicer
from polyhead.server.rpc.services.generation import GenerationServicer
from polyhead.server.rpc.services.heads import HeadServicer
from polyhead.server.rpc.services.scoring import ScoringServicer
from polyhead.server.rpc.services.trunk import TrunkServicer
from polyhead.server.rpc.tls import read_pair
from polyhead.v1 import fleet_pb2_grpc, generation_pb2_grpc, heads_pb2_grpc, scoring_pb2_grpc, trunk_pb2_grpc

MIB = 1 << 20
MAX_MESSAGE_BYTES = 4 * MIB  # that a caller sends
MAX_ANSWER_BYTES = 256 * MIB  # as our client takes; messages/reply_sizes.py has the bounds that a request meets first
MAX_AGE_MS = 30 * 60 * 1000

log = logging.getLogger(__name__)

# Checked against grpcio 1.85: unknown option names are ignored in silence.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ("grpc.http2.settings_timeout", HANDSHAKE_MS),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_age_ms", MAX_AGE_MS),
)


def make_server(config: ServeConfig, interceptor: CallInterceptor, health: Health, handlers: LateHandlers) -> grpc.aio.Server:
    """A server that answers health at once and everything else when `handlers` are filled in. Not bound, not started."""
    longest_ms = int(config.default_deadline_s * 1000)
    num_connections = max_connections(raise_descriptor_limit())
    if num_connections < MAX_CONNECTIONS:
        log.info("the system's limit of open files leaves room for %d connections: raise it with ulimit -n", num_connections)
    options = [
        *SERVER_OPTIONS,
        ("grpc.max_connection_age_grace_ms", longest_ms),
        ("grpc.max_allowed_incoming_connections", num_connections),
    ]
    server = grpc.aio.server(interceptors=[interceptor], options=options)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_generic_rpc_handlers((handlers,))
    if config.reflection:
        names = (*SERVICES, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def bind(server: grpc.aio.Server, config: ServeConfig) -> int:
    """The port that it listens on. FailedPrecondition if another process has it, InvalidArgument if no client could connect with TLS."""
    credentials = None
    if config.tls_cert is not None and config.tls_key is not None:
        credentials = grpc.ssl_server_credentials([read_pair(config.tls_cert, config.tls_key)])
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.port}"
    try:
        return server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    except RuntimeError:
        raise FailedPrecondition(
            f"cannot listen, the address is in use or not ours: {address}\nhint: another server runs there; choose --port"
        ) from None


def add_servicers(handlers: LateHandlers, services: Services) -> None:
    """Fill in the handlers of all services and open them."""
    runner = CallRunner(services)
    target: Any = handlers  # stands in for a server
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(runner), target)
    scoring_pb2_grpc.add_ScoringServiceServicer_to_server(ScoringServicer(runner), target)
    trunk_pb2_grpc.add_TrunkServiceServicer_to_server(TrunkServicer(runner), target)
    heads_pb2_grpc.add_HeadServiceServicer_to_server(HeadServicer(services), target)
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(FleetServicer(services), target)
    handlers.open()
