"""Boundary states on disk: each text is asked for once, by every run on one trunk, and never mixed with another trunk's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from polyhead.client import Client
from polyhead.heads.training.state_store import StateStore


@dataclass
class FakeTrunk:
    """Answers as a client does: a token's state is its id, and which trunk it is."""

    trunk_id: str = "sha256:" + "a" * 64
    precision: str = "float32"
    d_model: int = 4
    split_layer: int = 2
    asked: list[list[int]] = field(default_factory=list)

    def trunk(self) -> FakeTrunk:
        return self

    def encode(self, texts: list[list[int]], layer: int = 0) -> list[Any]:
        self.asked += texts
        return [np.repeat(np.array(ids, dtype=np.float32)[:, None] + layer, self.d_model, axis=1) for ids in texts]


def store(trunk: FakeTrunk, folder: Path, layer: int = 0) -> StateStore:
    return StateStore(cast(Client, trunk), folder, layer)


def test_a_text_is_asked_for_once(tmp_path: Path) -> None:
    trunk = FakeTrunk()
    first = store(trunk, tmp_path)
    rows = first.states([[1, 2], [3], [1, 2]], batch_size=1)
    assert [row[:, 0].tolist() for row in rows] == [[1.0, 2.0], [3.0], [1.0, 2.0]]
    assert (trunk.asked, first.num_computed) == ([[1, 2], [3]], 3)
    later = store(trunk, tmp_path)
    assert [row[:, 0].tolist() for row in later.states([[3], [4]])] == [[3.0], [4.0]]
    assert (trunk.asked[2:], later.num_computed) == ([[4]], 1)


@pytest.mark.parametrize("change", [{"trunk_id": "sha256:" + "b" * 64}, {"precision": "int8"}])
def test_states_of_another_trunk_or_precision_are_not_used(tmp_path: Path, change: dict[str, str]) -> None:
    store(FakeTrunk(), tmp_path).states([[1, 2]])
    other = FakeTrunk(**change)  # type: ignore[arg-type]
    store(other, tmp_path).states([[1, 2]])
    assert other.asked == [[1, 2]]


def test_another_layer_has_states_of_its_own(tmp_path: Path) -> None:
    trunk = FakeTrunk()
    store(trunk, tmp_path).states([[1]])
    [row] = store(trunk, tmp_path, layer=1).states([[1]])
    assert (row[0, 0].item(), len(trunk.asked)) == (2.0, 2)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_asked_for_again(tmp_path: Path, content: bytes) -> None:
    trunk = FakeTrunk()
    store(trunk, tmp_path).states([[1, 2]])
    [file] = tmp_path.rglob("*.safetensors")
    file.write_bytes(content)
    [rows] = store(trunk, tmp_path).states([[1, 2]])
    assert rows[:, 0].tolist() == [1.0, 2.0]
    assert trunk.asked == [[1, 2], [1, 2]]
    store(trunk, tmp_path).states([[1, 2]])
    assert len(trunk.asked) == 2


def test_a_full_disk_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = store(FakeTrunk(), tmp_path)

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        states.states([[1]])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
