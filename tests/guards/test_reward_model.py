"""docs/reward-model.md is true: its Python trains, pushes and scores on a tiny model, and the served number is transformers' own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama
from tests.guards.test_readme import DEFAULT_ADDRESS, RUNS
from tests.guards.tree import ROOT

DOCUMENT = ROOT / "docs" / "reward-model.md"


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model = save_tiny_llama(tmp_path / "model")
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = [(match[1], text[: match.start(1)].count("\n")) for match in RUNS.finditer(text)]
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "document"}
    with serving(tiny_model, tmp_path / "store") as server:
        for code, line in blocks:
            code = code.replace(DEFAULT_ADDRESS, server.address).replace('"my-llama"', repr(str(tiny_model)))
            exec(compile("\n" * line + code, str(DOCUMENT), "exec"), namespace)
    manifest = namespace["report"].head.manifest
    assert (manifest.read, manifest.pad_token_id) == ("last", namespace["tokenizer"].eos_token_id)
    assert namespace["served"].position == len(namespace["prompt"]) + len(namespace["reply"]) - 2, "before the EOS"
    assert re.search(r"of the trunk, unchanged; read at the last token that is not 2", repr(namespace["report"]))
