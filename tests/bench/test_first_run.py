"""The first run on a GPU: no part costs another, and what it calls is there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyhead.client.bench.gpu import first_run, parts
from polyhead.client.bench.gpu.first_run import PARTS, Part
from polyhead.client.bench.gpu.models import TINY
from polyhead.client.bench.gpu.work import PLANS
from polyhead.server.config import ServeConfig
from tests.guards.tree import ROOT

CPU = torch.device("cpu")


def test_what_it_calls_is_there() -> None:
    """Modules and tests had moved, and the script that called them would have spent a lease on import errors."""
    names = [part.name for part in PARTS]
    assert set(names) - {"tests"} == set(parts.PARTS)
    command = next(part for part in PARTS if part.name == "tests").command("cuda", "8b")
    files = [each for each in command if each.endswith(".py")]
    assert files
    assert all((ROOT / each).is_file() for each in files)
    assert {name.removeprefix("POLYHEAD_").lower() for name in first_run.ENVIRONMENT if name.startswith("POLYHEAD_")} <= set(
        ServeConfig.model_fields
    )
    assert sum(part.most_s for part in PARTS) < 900 - 120, "a quarter of an hour, the start of the machine included"


def test_no_part_costs_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One crashes, one hangs, one is too late; the one between them says what it has found."""
    code = {
        "facts": "import os; print('serves: x'); os.abort()",
        "exact": "import time; print('EXACT float32', flush=True); time.sleep(60)",
        "bf16": "print('step 1.00 ms'); print('nothing')",
    }
    monkeypatch.setattr(first_run, "FEWEST_S", 0.5)
    monkeypatch.setattr(first_run, "PARTS", tuple(replace(part, most_s=1) if part.name == "exact" else part for part in PARTS))
    monkeypatch.setattr(Part, "command", lambda part, *given: [sys.executable, "-c", code[part.name]])
    first_run.run(["facts", "exact", "bf16"], tmp_path, 60.0, "cpu", "tiny")
    first_run.run(["bf16"], tmp_path, 0.0, "cpu", "tiny")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" after ")[0] for line in lines if line.startswith("== ")] == [
        "== facts: exit status -6",
        "== exact: ended: it took too long",
        "== bf16: exit status 0",
        "== bf16: no time left",
    ]
    assert [line for line in lines if not line.startswith("== ")][:3] == ["serves: x", "EXACT float32", "step 1.00 ms"]
    assert "nothing" in (tmp_path / "2_bf16.log").read_text()


def test_parts_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """What they print is what a lease is for; a failure is said, and the next item follows."""
    sizes = PLANS["tiny"]
    parts.PARTS["facts"](CPU, sizes)
    parts.PARTS["race"](CPU, sizes)
    assert parts.attempt("broken", lambda: 1 / 0) is None
    said = capsys.readouterr().out
    assert "serves: torch's own calls" in said
    assert "same tokens: True" in said
    assert said.count("FAILED") == 1
    assert "ZeroDivisionError" in said
    assert sizes.shape is TINY
