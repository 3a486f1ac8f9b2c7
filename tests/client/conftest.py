"""One fake server a test, and a client of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from polyhead.client import Client

sys.path.insert(0, str(Path(__file__).parent))  # fake_server is shared by these tests only

from fake_server import FakeServer


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
