"""docs/guides/rl-round.md is true: its Python runs on a tiny model, and replies drawn while a trainer pushes have several spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama
from tests.guards.test_python_blocks import DEFAULT_ADDRESS, RUNS_ON_A_TINY_MODEL, blocks
from tests.guards.tree import ROOT

MOST_AGAIN = 5  # a busy machine may draw all tokens before the first push is there
DOCUMENT = ROOT / "docs" / "guides" / "rl-round.md"


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = blocks(DOCUMENT, RUNS_ON_A_TINY_MODEL)
    assert len(sources) == 3
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    model = save_tiny_llama(tmp_path / "model", tied=True)
    with serving(model, tmp_path / "store") as server:
        for source in [*sources, *[sources[-1]] * MOST_AGAIN]:
            if "samples" not in namespace or not all(len(sample.spans) > 1 for sample in namespace["samples"]):
                exec(compile(source.replace(DEFAULT_ADDRESS, server.address), str(DOCUMENT), "exec"), namespace)
    assert all(len(sample.spans) > 1 for sample in namespace["samples"])
