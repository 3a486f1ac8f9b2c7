"""One tiny model on disk for all end-to-end tests; each module starts the servers that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.tiny import save_tiny_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its output tied to the trunk's embedding."""
    return save_tiny_llama(tmp_path_factory.mktemp("tied"), tied=True)
