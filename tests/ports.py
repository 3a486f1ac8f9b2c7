"""Ports for servers that are to come back on the same one."""

from __future__ import annotations

import secrets
import socket
from contextlib import closing, suppress
from pathlib import Path

LOWEST = 15_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """One where nobody listens, below those that the kernel gives to connections and to servers that ask for any: tests beside this one
    take thousands of these."""
    end = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    while True:
        port = LOWEST + secrets.randbelow(end - LOWEST)
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
