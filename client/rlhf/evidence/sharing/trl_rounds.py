"""Rounds of TRL's GRPOTrainer on the same model: with its own generation, and with a server's. `make rlhf-evidence-trl`.

Runs in an environment of its own, which has TRL. Both ways train the same layers, those above the split, on the same questions, with a
frozen reference; a reply's reward is that of a preference and a rule head of a server. With its own generation TRL calls transformers'
`generate`, and asks the server for the two heads afterwards; with the server's everything comes in one call.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from polyhead.client.client import Client
from polyhead.client.integrations.trl import Reward, Rollout, column, freeze_trunk
from polyhead.client.local import local_server
from polyhead.client.rlhf import judges
from polyhead.client.rlhf.evidence.results import Results
from polyhead.client.rlhf.evidence.sharing.plan import DEFAULT, TRL, SharingPlan, Unit
from polyhead.client.rlhf.measure import ask, read_questions
from polyhead.heads.model import embedded

HEADS = ["preference", "rule"]
MICRO_BATCH = 12  # replies of one pass


def measure_rounds(address: str, model: Path, plan: SharingPlan, is_served: bool) -> dict[str, list[float]]:
    """Seconds of each round, and of its experience in it: generation, reference, rewards. The first round is left out."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    experience: list[float] = []
    ends: list[float] = []

    class Timed(GRPOTrainer):  # type: ignore[misc]  # TRL is in an environment of its own
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            began_at = time.monotonic()
            found = super()._generate_and_score_completions(inputs)
            experience.append(time.monotonic() - began_at)
            return found

        def log(self, *arguments: Any, **options: Any) -> None:
            ends.append(time.monotonic())
            super().log(*arguments, **options)

    count = plan.prompts * plan.samples
    questions, _ = read_questions((plan.rounds + 1) * plan.prompts, 0)
    trained = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    freeze_trunk(trained, address)
    own: list[Any] = [Reward(address, "preference"), Reward(address, "rule", rules=[judges.RULE], weight=2.0)]
    served: list[Any] = [column("preference"), column("rule", 2.0), column("kl", -0.05)]
    rollout = Rollout(address, score=HEADS, rules=[judges.RULE]) if is_served else None
    micro_batch = min(MICRO_BATCH, count)
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            gradient_checkpointing=False,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=count // micro_batch,
            num_generations=plan.samples,
            max_completion_length=plan.max_new_tokens,
            learning_rate=plan.learning_rate,
            beta=0.0 if is_served else 0.05,  # the server's way has the KL in a column
            max_steps=plan.rounds + 1,
            shuffle_dataset=False,
            disable_dropout=True,
        )
        trainer = Timed(
            model=trained,
            reward_funcs=served if is_served else own,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": ask(question)} for question in questions]),
            processing_class=AutoTokenizer.from_pretrained(model, local_files_only=True),
            rollout_func=rollout,
        )
        began_at = time.monotonic()
        trainer.train()
    walls = [end - begin for begin, end in zip([began_at, *ends], ends[: plan.rounds + 1], strict=False)]
    return {"wall": walls[1:], "experience": experience[1 : plan.rounds + 1]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Both ways in turn, on one server."""
    parser = argparse.ArgumentParser(prog="make rlhf-evidence-trl ARGS=...", description="TRL's rounds: its own generation, and a server's")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="of the results")
    parser.add_argument("--plan", type=Path, default=DEFAULT)
    parser.add_argument("--threads", type=int, default=2, help="of TRL's process")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    plan, model, unit = SharingPlan.read(options.plan), embedded.prepare(print), Unit(TRL)
    results = Results(options.folder, plan)
    if results.find(unit) is not None:
        print(f"finished before: {results.path(unit)}")
        return 0
    with tempfile.TemporaryDirectory() as store, local_server([str(model), "--store", store, "--keep-versions", "4"]) as server:
        with Client(server.address) as client:
            client.wait_ready(600.0)
        own, served = (measure_rounds(server.address, model, plan, is_served) for is_served in (False, True))
    results.keep(unit, {"own": own, "served": served})
    print(f"own generation, seconds a round: {own['wall']}\na server's: {served['wall']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
