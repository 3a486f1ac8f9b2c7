"""TRL's own trainers on CPU against a live server: `make test-trl`, in an environment of its own. Not collected where TRL is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from polyhead.client import Client
from polyhead.client.integrations.trl import Reward, Rollout, column, freeze_trunk
from polyhead.client.local import LocalServer
from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and datasets' own
ROOT = Path(__file__).resolve().parents[2]
ROWS = Dataset.from_list([{"prompt": [{"role": "user", "content": f"Question {index}?"}]} for index in range(16)])
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "num_generations": 4,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"), tied=True)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(folder, tmp_path_factory.mktemp("served") / "store", "--keep-versions", "50") as opened:
        yield opened


class Checked(Rollout):
    """Also notes which versions drew, and the largest gap between the server's log-probs and TRL's own for the same tokens."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.versions: list[int] = []
        self.gaps: list[float] = []
        self.first: list[list[int]] = []  # completions of the first call

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        drawn = super().__call__(prompts, trainer)
        self.versions.append(self.version)
        self.first = self.first or drawn["completion_ids"]
        model = trainer.accelerator.unwrap_model(trainer.model)
        for prompt, completion, served in zip(drawn["prompt_ids"], drawn["completion_ids"], drawn["logprobs"], strict=True):
            ids = torch.tensor([prompt + completion])
            with torch.no_grad():
                logprobs, *_ = trainer._get_per_token_logps_and_entropies(model, ids, torch.ones_like(ids), len(completion))
            self.gaps.append(float((logprobs[0] - torch.tensor(served)).abs().max()))
        return drawn


def trained(server: LocalServer, folder: Path, tmp_path: Path, **changes: Any) -> tuple[Checked, GRPOTrainer, list[bool]]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    freeze_trunk(model, server.address)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rollout = Checked(server.address, score=["preference", "rule"], rules=["no-insults"])
    arguments = GRPOConfig(output_dir=str(tmp_path / "out"), **{**COMMON, "max_steps": 3, "per_device_train_batch_size": 4, **changes})
    rewards = [column("rule"), column("kl", -0.05)]
    trainer = GRPOTrainer(
        model=model, reward_funcs=rewards, args=arguments, train_dataset=ROWS, processing_class=tokenizer, rollout_func=rollout
    )
    trainer.train()
    same = [torch.equal(before[name], parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return rollout, trainer, same


@pytest.mark.parametrize("accumulation", [1, 2])
def test_grpo_serves_what_it_trains(server: LocalServer, folder: Path, tmp_path: Path, accumulation: int) -> None:
    rollout, trainer, same = trained(server, folder, tmp_path, gradient_accumulation_steps=accumulation)
    first = rollout.versions[0]
    assert sorted(set(rollout.versions)) == [first, first + 1, first + 2]
    assert max(rollout.gaps) < 1e-4
    assert same
    assert all(same)
    names = {key for row in trainer.state.log_history for key in row}
    assert {"rewards/polyhead_rule/mean", "rewards/polyhead_kl/mean"} <= names


def test_rloo_takes_a_served_head_as_its_reward(server: LocalServer, folder: Path, tmp_path: Path) -> None:
    """The metric is what a direct call says about the same completions."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    seen: list[float] = []

    class Noted(Reward):
        def __call__(self, prompts: Any, completions: Any, **given: Any) -> list[float | None]:
            with Client(server.address) as client:
                pairs = list(zip(prompts, given["completion_ids"], strict=True))
                direct = [item.scores["rule"].p_follow["no-insults"] for item in client.score(pairs, heads=["rule"], rules=["no-insults"])]
            found = super().__call__(prompts, completions, **given)
            assert found == direct
            seen.append(sum(direct) / len(direct))
            return found

    arguments = RLOOConfig(output_dir=str(tmp_path / "out"), **{**COMMON, "max_steps": 2, "per_device_train_batch_size": 4})
    reward = Noted(server.address, "rule", rules=["no-insults"])
    trainer = RLOOTrainer(model=model, reward_funcs=reward, args=arguments, train_dataset=ROWS, processing_class=tokenizer)
    trainer.train()
    logged = [row["rewards/polyhead_rule/mean"] for row in trainer.state.log_history if "rewards/polyhead_rule/mean" in row]
    assert logged == pytest.approx(seen, abs=1e-5)


def test_two_processes_push_once_and_draw_apart(server: LocalServer, folder: Path, tmp_path: Path) -> None:
    """Data parallel over gloo: one version a step, the same on both ranks, whose samples differ."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "--module", "tests.trl.two_processes", server.address, str(folder), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [(tmp_path / f"rank-{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert ranks[0][0] == ranks[1][0]  # versions
    assert len(set(ranks[0][0].split())) == 2
    assert ranks[0][1] != ranks[1][1]  # completions
    assert all(float(rank[2]) < 1e-4 for rank in ranks)  # gaps
