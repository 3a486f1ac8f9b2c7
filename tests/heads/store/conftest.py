"""A new store for each test, on a RAM disk where there is one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyhead.heads.store import failpoints
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import RAM, TRUNK, activate, push


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.disarm()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=RAM) as name:
        yield Path(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[HeadStore]:
    with HeadStore.open(folder, TRUNK) as store:
        yield store


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """A store with one acknowledged generation."""
    with tempfile.TemporaryDirectory(dir=RAM) as name:
        folder = Path(name) / "store"
        with HeadStore.open(folder, TRUNK) as store:
            activate(store, {name: push(store, name, f"{name} 1") for name in ("policy", "value")})
        yield folder
