"""Processors with fewer instructions than this one, for processes that are to believe they run on one. Imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

ROOT = Path(__file__).resolve().parents[4]
NO_AMX = {"amx-int8": False, "amx-tile": False, "amx-bf16": False}  # LLVM knows tiles by any of them
OTHER_PROCESSORS: dict[str, dict[str, bool]] = {
    "avx512 without amx": NO_AMX,
    "avx512 without vnni": {"avx512vnni": False},
    "avx2": NO_AMX | {"avx512vnni": False, "avx512bw": False},
    "neither": NO_AMX | {"avx512vnni": False, "avx512bw": False, "avx2": False, "f16c": False},
}


def pretending(name: str) -> str:
    """Python that makes its process believe so. What this processor lacks itself cannot be switched on: then the test is skipped."""
    there = llvm.get_host_cpu_features()
    if not any(there.get(feature) for feature in OTHER_PROCESSORS[name]):
        pytest.skip("this processor is such a one: the tests have run on it already")
    return (
        "import llvmlite.binding as llvm\n"
        "there = llvm.get_host_cpu_features()\n"
        f"there.update({OTHER_PROCESSORS[name]!r})\n"
        "llvm.get_host_cpu_features = lambda: there\n"
    )


def run_python(code: str, **environment: str) -> None:
    """In a process of its own, which has to end well."""
    command, env = [sys.executable, "-W", "ignore", "-c", code], os.environ | environment
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
