"""What a target's address says by itself: which servers it names, whether it is this machine, and whether gRPC would go through a proxy."""

from __future__ import annotations

import ipaddress
import os
import re

__all__ = ["addresses_of", "is_loopback", "proxy_variable"]

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # in gRPC's order


def addresses_of(target: str) -> tuple[str, ...]:
    """The servers of "a:50051,b:50051". A target of gRPC's own, such as "ipv4:10.0.0.1:50051,10.0.0.2:50051", is one."""
    if re.match(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):(?!\d+(,|$))", target):
        return (target,)
    return tuple(dict.fromkeys(each.strip() for each in target.split(",") if each.strip()))


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
