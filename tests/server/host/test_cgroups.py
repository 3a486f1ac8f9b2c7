"""How much memory the groups around a process leave it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.server.config import ServeConfig
from polyhead.server.host import cgroups
from polyhead.server.process import loading


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A unit in a slice; neither has a limit yet."""
    (tmp_path / "own").write_text("1:cpu:/else\n0::/system.slice/a.service\n")
    (tmp_path / "fs/system.slice/a.service").mkdir(parents=True)
    (tmp_path / "memory.max").write_text("1")  # above the root of all groups: none of ours
    monkeypatch.setattr(cgroups, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path / "fs")
    return tmp_path / "fs"


def limit(folder: Path, most: str, used: int, unused_files: int = 0) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {unused_files}\n")


def test_a_units_own_limit_counts(tree: Path) -> None:
    """Only the limit of the topmost group was read: under systemd's MemoryMax= the budget was made of the machine's whole memory."""
    assert not list(cgroups.memory_left())
    limit(tree / "system.slice/a.service", "1000", used=400, unused_files=100)
    limit(tree / "system.slice", "max", used=10**12)
    assert list(cgroups.memory_left()) == [700]
    assert loading.free_memory("cpu") == 700


@pytest.mark.parametrize(("device", "head_device", "budget"), [("cpu", "", 450), ("cuda:1", "", 750), ("cuda:1", "cuda:2", 1500)])
def test_caches_are_counted_once(device: str, head_device: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's are taken when they are made, and so are not free any more; their size was subtracted once more."""
    monkeypatch.setattr(loading, "free_memory", lambda name: {"cpu": 1000, "cuda:1": 1000, "cuda:2": 2000}[name])
    assert loading.head_budget(ServeConfig(device=device, head_device=head_device, cache_bytes=400)) == budget


def test_a_second_device_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    loading.check_devices(ServeConfig(device="cuda", head_device="cuda:1"))
    with pytest.raises(FailedPrecondition, match=r"no such device: cuda:2 \(torch finds 2 GPUs\)\nhint: leave out --head-device") as caught:
        loading.check_devices(ServeConfig(device="cuda", head_device="cuda:2"))
    assert caught.value.field == "head_device"
    loading.check_devices(ServeConfig(device="cuda", tensor_parallel=2, cuda_graphs=False))
    with pytest.raises(FailedPrecondition, match=r"no such device: cuda:3 \(torch finds 2 GPUs\)\nhint: --tensor") as caught:
        loading.check_devices(ServeConfig(device="cuda", tensor_parallel=4, cuda_graphs=False))
    assert caught.value.field == "tensor_parallel"


def test_a_gpus_free_memory_is_asked_for_when_torch_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [100]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(900))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 1000))
    assert loading.free_memory("cuda") == 900


def test_the_narrowest_group_decides(tree: Path) -> None:
    limit(tree / "system.slice/a.service", "1000", used=400)
    limit(tree / "system.slice", "500", used=480)
    limit(tree, "100", used=400)
    assert sorted(cgroups.memory_left()) == [0, 20, 600]
    assert loading.free_memory("cpu") == 0
