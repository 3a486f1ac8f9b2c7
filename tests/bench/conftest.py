"""What the benchmark's tests share: a tiny model on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.tiny import save_tiny_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))
