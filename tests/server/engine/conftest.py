"""One tiny llama for the engine's tests; a fresh engine for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.heads.models import save_tiny
from tests.server.engine.harness import Bench


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder, tie_word_embeddings=True, max_position_embeddings=512)
    return folder


@pytest.fixture(params=["fast", "plain"])
def bench(request: pytest.FixtureRequest, llama_folder: Path) -> Bench:
    return Bench.open(llama_folder, split_layer=2, is_fast=request.param == "fast")
