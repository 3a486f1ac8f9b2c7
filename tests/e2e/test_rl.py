"""RL on a real server with a tiny model: rounds that end in a swap, guards that go back, and runs that are killed and resumed."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyhead.client import Client
from polyhead.heads.model.family import trainable_parameters
from polyhead.heads.training.checkpoints import CheckpointMismatch
from polyhead.heads.training.fit import TrainingFailed
from polyhead.heads.training.rl import rounds
from polyhead.heads.training.rl.config import Algorithm, RLConfig
from polyhead.heads.training.rl.learner import Learner
from polyhead.heads.training.rl.prompts import PromptPool
from polyhead.heads.training.rl.report import RoundReport
from polyhead.heads.training.rl.rewards import HeadsReward, JudgeReward, RecipeReward, RewardError
from polyhead.heads.training.rl.served import OtherTrainer
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.verify import verify
from tests.e2e.support import serving

PROMPTS = [([{"role": "user", "content": f"Question {index}?"}], "questions") for index in range(5)]
CONFIG = RLConfig(
    rounds=3, prompts=3, samples=3, max_new_tokens=6, learning_rate=3e-3, value_learning_rate=3e-3, micro_batch_tokens=60, kl_limit=50.0
)
_names = itertools.count()


def e_count(prompt: Any, reply: str) -> float:
    """A reward that a byte-level model can learn: letters between a and m."""
    return float(sum("a" <= letter <= "m" for letter in reply))


JUDGE = JudgeReward(e_count, "e_count")


@pytest.fixture(scope="module")
def client(tied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("rl") / "store"
    with serving(tied_model, folder, "--keep-versions", "50") as server, Client(server.address, timeout=60) as opened:
        yield opened


@pytest.fixture
def run(client: Client, tmp_path: Path) -> rounds.Run:
    """One under a name of its own, from the server's first heads."""
    name = f"arm{next(_names)}"
    return rounds.Run(client, PromptPool(PROMPTS, 0), JUDGE, tmp_path / "run", name, "policy@1", "value@1")


def bits(learner: Learner) -> bytes:
    return b"".join(tensor.numpy().tobytes() for _, tensor in sorted(learner.tensors().items()))


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_rounds_raise_the_reward_and_each_ends_in_one_activation(client: Client, run: rounds.Run, algorithm: Algorithm) -> None:
    reports: list[RoundReport] = []
    before = client.status().generation if hasattr(client.status(), "generation") else client.generations(1)[0].number
    config = replace(CONFIG, rounds=8, prompts=5, samples=6, algorithm=algorithm, kl_weight=0.0)
    learner = rounds.train(run, config, reports.append)
    assert [report.number for report in reports] == list(range(1, 9))
    assert reports[-1].reward > reports[0].reward + 0.5
    assert max(max(report.gap, report.value_gap) for report in reports) < 1e-4  # every swap served what was trained
    activations = [each for each in client.generations() if each.number > before]
    assert len(activations) == 1 + 8  # the start, then one of both heads a round
    names = {f"policy-{run.name}", f"value-{run.name}"}
    versions = [{name: each.heads[name] for name in names} for each in reversed(activations)]
    assert all(late[name] == early[name] + 1 for early, late in itertools.pairwise(versions) for name in names)
    items = [(client.tokenize(prompt), [80, 81, 82]) for prompt, _ in PROMPTS[:2]]
    states = StateStore(client, run.folder / "states")
    assert verify(client, learner.policy, f"policy-{run.name}", items, states) < 1e-4
    assert verify(client, learner.value, f"value-{run.name}", items, states) < 1e-4
