"""Primaries and followers as real processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from polyhead.client import Client
from polyhead.client.local import LocalServer
from tests.e2e.support import serving


@contextlib.contextmanager
def primary_on(port: int, model: Path, store: Path, **settings: object) -> Iterator[LocalServer]:
    with serving(model, store, "--port", str(port), **settings) as server, Client(server.address) as client:
        client.wait_ready()
        yield server


@contextlib.contextmanager
def follower_of(port: int, model: Path, store: Path, *flags: str, **settings: object) -> Iterator[LocalServer]:
    """Flags, not variables: these would stay for the servers that are started meanwhile."""
    with serving(model, store, "--follow", f"127.0.0.1:{port}", *flags, **settings) as server:
        yield server


def ready(server: LocalServer) -> Client:
    client = Client(server.address)
    client.wait_ready()
    return client
