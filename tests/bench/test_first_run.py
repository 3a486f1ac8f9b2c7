"""The first run on a GPU: no part costs another, and what it calls is there."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from polyhead.client.bench.gpu import first_run, parts, without_numba
from polyhead.client.bench.gpu.first_run import PARTS, Part
from polyhead.client.bench.gpu.models import TINY
from polyhead.client.bench.gpu.work import PLANS
from polyhead.server.config import ServeConfig
from tests.guards.tree import ROOT

CPU = torch.device("cpu")
HANGING = """
import os, time
if child := os.fork():
    print("child", child)
    print("EXACT float32", flush=True)
def stuck():
    time.sleep(60)
stuck()
"""


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
    """One crashes, one hangs with a process of its own, one is too late; the one between them says what it has found."""
    code = {
        "facts": "import os; print('[   0.1] -- facts'); print('serves: x', flush=True); os.abort()",
        "exact": HANGING,
        "bf16": "print('step 1.00 ms'); print('nothing')",
    }
    monkeypatch.setattr(first_run, "FEWEST_S", 0.5)
    monkeypatch.setattr(first_run, "PARTS", tuple(replace(part, most_s=2) if part.name == "exact" else part for part in PARTS))
    monkeypatch.setattr(Part, "command", lambda part, *given: [sys.executable, "-S", "-c", code[part.name]])
    assert first_run.run(["facts", "exact", "bf16"], tmp_path, 60.0, "cpu", "tiny") == 1
    assert first_run.run(["bf16"], tmp_path, 0.0, "cpu", "tiny") == 1
    assert first_run.run(["bf16"], tmp_path, 60.0, "cpu", "tiny") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" after ")[0] for line in lines if line.startswith("== ")] == [
        "== facts: exit status -6",
        "== exact: ended: it took too long",
        "== bf16: exit status 0",
        "== bf16: no time left",
        "== bf16: exit status 0",
    ]
    said = ["serves: x", "EXACT float32", "step 1.00 ms"]
    assert [line for line in lines if line in said][:3] == said
    assert f"torch=={torch.__version__.partition('+')[0]}" in lines[0]
    assert "nothing" in (tmp_path / "2_bf16.log").read_text()
    hanging = (tmp_path / "1_exact.log").read_text()
    assert "in stuck" in hanging, "where it was"
    number = next(int(line.split()[1]) for line in hanging.splitlines() if line.startswith("child "))
    assert not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


def test_a_first_part_that_cannot_be_imported_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a bare machine nine parts failed one after the other, and what was missing stood in their logs alone."""
    started: list[str] = []

    def command(part: Part, *given: str) -> list[str]:
        started.append(part.name)
        return [sys.executable, "-S", "-c", "import torch_that_is_missing"]

    monkeypatch.setattr(Part, "command", command)
    assert first_run.run(["facts", "exact", "bf16"], tmp_path, 60.0, "cpu", "tiny") == first_run.CANNOT_BEGIN
    assert started == ["facts"]
    said = capsys.readouterr().out
    assert "No module named 'torch_that_is_missing'" in said
    assert "--wheels DIR" in said


def test_a_checkout_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is installed, and a package comes as a wheel, beside one that is broken."""
    package = tmp_path / "carried-1.0-py3-none-any.whl"
    with zipfile.ZipFile(package, "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr("carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    (tmp_path / "broken-1.0-py3-none-any.whl").write_text("nothing")
    monkeypatch.setattr(first_run.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(first_run, "_install", unpacked)
    (tmp_path / "installed").mkdir()
    path = first_run.python_path(tmp_path, tmp_path / "installed")
    command = [sys.executable, "-S", "-c", "import carried, polyhead.heads; print(*polyhead.heads.__path__)"]
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False)
    assert Path(done.stdout.strip()).resolve() == ROOT / "heads", done.stderr


def test_numba_may_be_missing() -> None:
    """It refuses a numpy that is newer than it knows; what is made of its names at import does nothing."""
    assert without_numba.replace_missing(("numpy",)) == ""
    before = list(sys.meta_path)
    try:
        assert without_numba.replace_missing(("numba_gone", "llvmlite_gone")).startswith("ModuleNotFoundError")
        core = importlib.import_module("numba_gone.core.event")
        assert isinstance(importlib.import_module("llvmlite_gone.binding").anything, without_numba.Nothing)
        made = core.njit(fastmath=True)(len)
        assert isinstance(made(1)[2] + 3, without_numba.Nothing)
        assert not made.size > 3
        with pytest.raises(AttributeError):
            made.__wrapped__  # noqa: B018
    finally:
        sys.meta_path[:] = before


def unpacked(wheels: list[Path], folder: Path) -> None:
    """As pip installs them, which takes seconds."""
    for each in filter(zipfile.is_zipfile, wheels):
        with zipfile.ZipFile(each) as wheel:
            wheel.extractall(folder)


def test_parts_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """What they print is what a lease is for; a failure is said, and the next item follows."""
    sizes = PLANS["tiny"]
    parts.PARTS["facts"](CPU, sizes)
    parts.PARTS["race"](CPU, sizes)
    assert parts.attempt("broken", lambda: 1 / 0) is None
    said = capsys.readouterr().out
    assert "serves: torch's own calls" in said
    assert "same tokens: True attention: torch; decode steps without CUDA graphs" in said
    assert said.count("FAILED") == 1
    assert "ZeroDivisionError" in said
    assert sizes.shape is TINY
