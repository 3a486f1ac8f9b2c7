"""The kernels compile for the GPUs that they are for, and fit into their shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes a program may have: CUDA C++ programming guide, table of capabilities


@pytest.mark.parametrize("capability", SHARED)
def test_each_kernel_compiles(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.triton.compile_ahead", str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    programs = [json.loads(line) for line in done.stdout.splitlines()]
    small = ["silu_up", "add_norm", "turn", *["quantize"] * (1 if capability < 89 else 2), "descale"]
    assert [each["kernel"] for each in programs] == [*small, "attend", "attend", "attend", "merge"]
    assert all(each["tensor_cores"] for each in programs if each["kernel"] == "attend")
    assert all(each["shared"] <= SHARED[capability] for each in programs)
