"""One tiny model and one server on it for all experiments: each trains heads of its own name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from polyhead.client import Client
from polyhead.client.local import LocalServer
from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, its output tied."""
    return save_tiny_llama(tmp_path_factory.mktemp("rlhf"), tied=True)


@pytest.fixture(scope="package")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Its trunk has two of the layers."""
    with serving(model, tmp_path_factory.mktemp("served") / "store") as opened:
        yield opened


@pytest.fixture(scope="package")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=60) as opened:
        yield opened
