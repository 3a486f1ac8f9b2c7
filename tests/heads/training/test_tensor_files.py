"""Files of a training run: what the library reads from them, what they take to write, and what a full disk leaves."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from polyhead.heads.training.tensor_files import read_tensors, write_tensors


def test_tensors_of_every_layout_come_back(tmp_path: Path) -> None:
    rows = torch.randn(4, 6)
    tensors = {
        "rows": rows,
        "columns": rows.t(),
        "bf16": rows.to(torch.bfloat16),
        "step": torch.tensor(7),
        "none": torch.empty(0, 3),
        "trained": rows.clone().requires_grad_(True),
    }
    write_tensors(tmp_path / "state.safetensors", tensors, {"facts": '{"a": 1}'})
    found = read_tensors(tmp_path / "state.safetensors", "pt")
    assert found is not None
    assert found[1] == {"facts": '{"a": 1}'}
    assert found[0].keys() == tensors.keys()
    assert all(torch.equal(found[0][name], tensor) and found[0][name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_a_state_is_written_from_its_own_memory(tmp_path: Path) -> None:
    """A checkpoint of two heads and their moments takes as much memory as training itself: nobody has room for a second copy."""
    tensors = {f"part/{number}": torch.zeros(1 << 18) for number in range(8)}  # 8 MiB in all
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "state.safetensors", tensors, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 18, "a quarter of one of them"
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        assert set(file.keys()) == set(tensors)


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"a": torch.zeros(3)}, {})
    found = read_tensors(path, "pt")
    assert found is not None
    assert torch.equal(found[0]["a"], torch.ones(3))
    assert [each.name for each in tmp_path.iterdir()] == ["state.safetensors"]
