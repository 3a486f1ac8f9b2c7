"""Boundary states on disk: each text's are asked of the server once, so that later epochs and later runs cost no trunk work.

The trunk never changes, so a state never goes stale. A file's place says what it depends on: trunk id, precision, layer, and the SHA-256
of the token ids. Files appear by rename: a killed run leaves none that is half written.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from polyhead.client import Client


class States(Protocol):
    """Where the boundary states of texts come from."""

    def states(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """(T, d_model) float32 for each list of token ids."""


class StateStore:
    """Boundary states of one served trunk. `num_computed` counts the tokens that the server was asked for."""

    def __init__(self, client: Client, folder: Path, layer: int = 0) -> None:
        trunk = client.trunk()
        self.num_computed = 0
        self._client = client
        self._layer = layer
        self._shape = trunk.d_model
        self._folder = folder / trunk.trunk_id.removeprefix("sha256:") / f"{trunk.precision}-layer{layer or trunk.split_layer}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def states(self, texts: Sequence[Sequence[int]], batch_size: int = 64) -> list[torch.Tensor]:
        """(T, d_model) float32 for each list of token ids; equal texts are asked for once, `batch_size` texts a call."""
        keys = [_key(ids) for ids in texts]
        found = {key: self._read(key, len(ids)) for key, ids in zip(keys, texts, strict=True)}
        missing = {key: list(ids) for key, ids in zip(keys, texts, strict=True) if found[key] is None}
        order = list(missing)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for key, rows in zip(batch, self._client.encode([missing[key] for key in batch], layer=self._layer), strict=True):
                self._write(key, rows)
                found[key] = rows
                self.num_computed += len(rows)
        return [torch.from_numpy(np.ascontiguousarray(found[key])) for key in keys]

    def _read(self, key: str, length: int) -> NDArray[np.float32] | None:
        """None if the states are not there. A damaged file counts as not there: it is asked for and written again."""
        try:
            rows: NDArray[np.float32] = load_file(self._path(key))["states"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None
        return rows if rows.shape == (length, self._shape) else None

    def _write(self, key: str, rows: NDArray[np.float32]) -> None:
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        staging = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            staging.write_bytes(save({"states": np.ascontiguousarray(rows)}))
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"


def _key(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).hexdigest()
