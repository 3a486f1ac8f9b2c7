"""The store stays light: its crash tests start hundreds of processes, and the command line repairs stores without torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["store.store", "format.tensorfile", "store.failpoints", "store.osio", "store.damage", "store.identity"])
def test_imports_nothing_heavy(module: str) -> None:
    code = f"""
import sys, polyhead.heads.{module}
heavy = [name for name in ("torch", "transformers", "numpy", "safetensors", "grpc", "google.protobuf") if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else 0)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
