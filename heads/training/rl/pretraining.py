"""Pretraining texts mixed into RL, so that a policy goes on predicting text as it did before (PPO-ptx: InstructGPT, equation 2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polyhead.client import Client
from polyhead.heads.training.data import DataError
from polyhead.heads.training.packing import Text
from polyhead.heads.training.processes import Processes
from polyhead.heads.training.state_store import StateStore

MOST_TOKENS = 256  # of one text; what follows is left out
MOST_CHARACTERS = 16 * MOST_TOKENS  # that are tokenised to get them


@dataclass(frozen=True)
class Pretraining:
    """What is mixed in at each of the policy's optimiser steps."""

    texts: Sequence[str]
    weight: float = 1.0  # of the mean loss of a token; InstructGPT's 27.8 belongs to its own units
    count: int = 8  # texts of one step

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError("no pretraining texts")
        if not 0 < self.weight < float("inf"):
            raise DataError(f"the weight of pretraining texts must be above 0: {self.weight}")
        if self.count < 1:
            raise DataError(f"at least one pretraining text a step: {self.count}")

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be resumed."""
        sha256 = hashlib.sha256(json.dumps(list(self.texts)).encode()).hexdigest()
        return {"pretraining_sha256": sha256, "pretraining_weight": self.weight, "pretraining_count": self.count}


class PretrainingTexts:
    """The texts as ids, and their boundary states as they are needed. Which ones a step has depends on (seed, step) alone."""

    def __init__(self, client: Client, mixed: Pretraining, states: StateStore, seed: int) -> None:
        ids = client.tokenize_batch([text[:MOST_CHARACTERS] for text in mixed.texts])
        self._ids = [row[:MOST_TOKENS] for row in ids if len(row) > 1]  # nothing predicts a text's first token
        if not self._ids:
            raise DataError("every pretraining text is shorter than two tokens")
        self._mixed, self._states, self._seed = mixed, states, seed

    @property
    def weight(self) -> float:
        return self._mixed.weight

    def of_step(self, step: int, processes: Processes) -> tuple[list[Text], int]:
        """(this process's texts of an optimiser step, from 0; the tokens that are predicted in all of the step's texts).

        They come in an order of its own each time all have been used.
        """
        chosen = []
        for place in range(step * self._mixed.count, (step + 1) * self._mixed.count):
            turn, index = divmod(place, len(self._ids))
            order = torch.randperm(len(self._ids), generator=torch.Generator().manual_seed(self._seed * 1_000_003 + turn))
            chosen.append(self._ids[int(order[index])])
        own = processes.share(chosen)
        texts = [Text(row, states, 1) for row, states in zip(own, self._states.states(own), strict=True)]
        return texts, sum(len(row) - 1 for row in chosen)
