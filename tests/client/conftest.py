"""One fake server a test, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from polyhead.client import Client
from tests.client.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    fake.start()
    try:
        yield fake
    finally:
        fake.stop()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target, timeout=20) as opened:
        yield opened
