"""Files of a training run, each whole or not there: a run that is killed or finds the disk full leaves the earlier file as it was."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyhead.heads.model.checkpoint import Piece, file_chunks


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, written from the tensors' own memory: no second copy of a run's state. Raises OSError if the disk is full."""
    _write(path, file_chunks({name: Piece.of(tensor) for name, tensor in tensors.items()}, metadata))


def write_whole(path: Path, data: bytes) -> None:
    """A file of these bytes. Raises OSError if the disk is full."""
    _write(path, [data])


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file beside `path`, sync it to the disk and rename it."""
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with staging.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def read_tensors(path: Path, framework: Literal["pt", "np"]) -> tuple[dict[str, Any], dict[str, str]] | None:
    """(tensors by name, metadata) of a safetensors file; None if it is not there, or damaged."""
    try:
        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  not a mapping
    except (FileNotFoundError, SafetensorError):
        return None
