"""One tiny model for the server's tests; a fresh store and registry for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.fakes import World, save_world_model


@pytest.fixture(scope="session")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world_model(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(world_model: Path, tmp_path: Path) -> Iterator[World]:
    opened = World.open(world_model, tmp_path / "store")
    yield opened
    opened.close()
