"""Files of a training run, each whole or not there: a run that is killed or finds the disk full leaves the earlier file as it was."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside `path`, sync it to the disk and rename it. Raises OSError if the disk is full."""
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with staging.open("wb") as file:
            file.write(data)
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
