"""The unsplit model in transformers: what everything the server says is compared with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from polyhead.heads.model import embedded
from tests.conftest import NUM_THREADS
from tests.smollm.whole_model import WholeModel

VOICES = Path(__file__).resolve().parents[2] / "client" / "demo" / "voices.json"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Tests of tiny models set one thread; whole forward passes want all, where no other process runs tests beside this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else NUM_THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def whole() -> WholeModel:
    return WholeModel.load(embedded.prepare())


@pytest.fixture(scope="session")
def prose(whole: WholeModel) -> list[int]:
    """A thousand ids of text, to cut prompts out of."""
    pairs = json.loads(VOICES.read_text(encoding="utf-8"))
    text = "\n".join(f"{pair['question']} {pair['plain']} {pair['pirate']}" for part in ("train", "held_out") for pair in pairs[part])
    ids = whole.ids_of(text)
    assert len(ids) > 900
    return ids
