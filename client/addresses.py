"""What a target's address says by itself: whether it is this machine, and whether gRPC would go through a proxy."""

from __future__ import annotations

import ipaddress
import os
import re

__all__ = ["is_loopback", "proxy_variable"]

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # in gRPC's order


def is_loopback(target: str) -> bool:
    """Whether a target is this machine: localhost, 127.0.0.0/8, ::1, or a Unix socket."""
    name = re.sub(r"^(dns:(//[^/]*/)?|ipv4:|ipv6:)", "", target)
    if name.startswith(("unix:", "unix-abstract:")):
        return True
    host = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0] if name.count(":") == 1 else name
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_variable(target: str) -> str:
    """The variable that sends calls to `target` through a proxy; empty if there is none."""
    return "" if is_loopback(target) else next((name for name in _PROXIES if os.environ.get(name)), "")
