"""docs/guides/reward-model.md is true: its Python trains, pushes and scores on a tiny model, and the served number is transformers' own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama
from tests.guards.test_python_blocks import DEFAULT_ADDRESS, RUNS_ON_A_TINY_MODEL, blocks
from tests.guards.tree import ROOT

DOCUMENT = ROOT / "docs" / "guides" / "reward-model.md"


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model = save_tiny_llama(tmp_path / "model")
    sources = blocks(DOCUMENT, RUNS_ON_A_TINY_MODEL)
    assert len(sources) == 2
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "document"}
    with serving(tiny_model, tmp_path / "store") as server:
        for source in sources:
            code = source.replace(DEFAULT_ADDRESS, server.address).replace('"my-llama"', repr(str(tiny_model)))
            exec(compile(code, str(DOCUMENT), "exec"), namespace)
    manifest = namespace["report"].head.manifest
    assert (manifest.read, manifest.pad_token_id) == ("last", namespace["tokenizer"].eos_token_id)
    assert namespace["served"].position == len(namespace["prompt"]) + len(namespace["reply"]) - 2, "before the EOS"
    assert re.search(r"of the trunk, unchanged; read at the last token that is not 2", repr(namespace["report"]))
