"""The limit of connections, so that idle ones cannot use up the process's file descriptors. Knows no protocol."""

from __future__ import annotations

import contextlib
import resource

MAX_CONNECTIONS = 4096  # of gRPC
RESERVED_DESCRIPTORS = 256  # for the store, the metrics' port, libraries and pipes
HANDSHAKE_MS = 10_000  # a connection that says nothing, or stops half-way, is closed after so long


def raise_descriptor_limit() -> int:
    """Let the process open as many files as MAX_CONNECTIONS asks for, if the system lets it; how many it may open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        return allowed
    return soft


def max_connections(descriptor_limit: int) -> int:
    """What is left for connections; at least half, where the limit is very small."""
    return min(MAX_CONNECTIONS, max(descriptor_limit - RESERVED_DESCRIPTORS, descriptor_limit // 2))
