"""The committed stubs are what the .proto files generate today, and the .proto files pass buf's lint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.guards.tree import ROOT

STUBS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def test_stubs_are_in_step(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "protos" / "generate.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    generated, committed = texts(tmp_path / "polyhead" / "v1"), texts(ROOT / "protos" / "polyhead" / "v1")
    assert generated.keys() == committed.keys()
    stale = [name for name, text in generated.items() if text != committed[name]]
    assert not stale, f"make protos, then commit: {stale}"


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for pattern in STUBS for path in sorted(folder.glob(pattern))}


def test_buf_lint() -> None:
    """STANDARD rules, and a comment on every element."""
    buf = Path(sys.executable).parent / "buf"
    done = subprocess.run([str(buf), "lint", "protos"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
