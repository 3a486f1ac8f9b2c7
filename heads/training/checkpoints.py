"""A training run on disk: parameters, the optimiser's moments, the moving average, and how far it has come, in one file a checkpoint.

A file appears by rename, so a killed run leaves whole checkpoints only. Safetensors, never pickle. Knows no loss and no data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polyhead.heads.training.processes import Processes
from polyhead.heads.training.tensor_files import read_tensors, write_tensors

_NAME = re.compile(r"step-(\d{9})\.safetensors")


class CheckpointMismatch(ValueError):
    """The folder holds checkpoints of another run: other data, other settings, or another head."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on with the same bits."""

    step: int  # optimiser steps that are done
    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]  # plain JSON


class CheckpointFolder:
    """Checkpoints of one run; the newest `keep` stay. `identity` says which run it is: a folder of another one is refused."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], keep: int = 2) -> None:
        self._folder = folder
        self._identity = json.loads(json.dumps(identity))
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write one and delete the oldest. Raises OSError if the disk is full; the earlier ones stay."""
        path = self._path(checkpoint.step)
        metadata = {"facts": json.dumps(dict(checkpoint.facts)), "identity": json.dumps(self._identity)}
        write_tensors(path, checkpoint.tensors, metadata)
        for _, old in self._files()[: -self._keep]:
            old.unlink()
        return path

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None if there is none. Raises CheckpointMismatch for another run's."""
        for step, _ in reversed(self._files()):
            if (found := self.at(step)) is not None:
                return found  # a damaged one is passed over: an older one is better than none
        return None

    def at(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step, None if there is none or it is damaged. Raises CheckpointMismatch for another run's."""
        path = self._path(step)
        if (found := read_tensors(path, "pt")) is None:
            return None
        tensors, metadata = found
        if (identity := json.loads(metadata["identity"])) != self._identity:
            keys = sorted(key for key in {*identity, *self._identity} if identity.get(key) != self._identity.get(key))
            raise CheckpointMismatch(f"{path} is a checkpoint of another run: {', '.join(keys)} differ\nhint: give another folder")
        return Checkpoint(step, tensors, json.loads(metadata["facts"]))

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: a run that went back does not want them."""
        for later, path in self._files():
            if later > step:
                path.unlink()

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:09d}.safetensors"

    def _files(self) -> list[tuple[int, Path]]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self._folder.iterdir())
        return sorted((int(match[1]), path) for match, path in matches if match)


def of_main(processes: Processes, read: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """What the main process reads, in every process: only its disk counts, the others need not share it."""
    found: list[Checkpoint | None] = [None]

    def described() -> tuple[int, Mapping[str, Any]] | None:
        found[0] = read()
        return None if found[0] is None else (found[0].step, found[0].facts)

    if (about := processes.on_main(described)) is None:
        return None
    step, facts = about
    return Checkpoint(step, processes.tensors_of_main(found[0].tensors if found[0] is not None else {}), facts)
