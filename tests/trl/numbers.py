"""What TRL's own trainers compute of the given numbers, for tests/heads/training/trl_numbers.json: `python -m tests.trl.numbers`.

With names of parts (`ppo`) it records those alone. GRPOTrainer and RewardTrainer are those of `make test-trl`. TRL 1.12 is the last one
with a PPOTrainer, whose advantages and losses are lines of one long method: they are cut out of its source and run.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.e2e.tiny import save_tiny_llama

RECORDED = Path(__file__).resolve().parents[1] / "heads" / "training" / "trl_numbers.json"
Given = dict[str, Any]
Found = dict[str, Any]
PLAIN: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}


def grpo(given: Given) -> Found:
    """The clipped loss, a mean over tokens (loss_type "bnpo"), its gradient, and the loss with plain k3 in it."""
    from trl import GRPOConfig, GRPOTrainer

    rows = {name: _padded(given[name]) for name in ("logprobs", "drawn", "reference")}
    mask = _padded([[1.0] * len(row) for row in given["drawn"]])
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_llama(Path(folder))
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            reward_funcs=[lambda **_: []],
            args=GRPOConfig(
                output_dir=folder, loss_type="bnpo", epsilon=given["clip"], use_bias_correction_kl=False, num_generations=2, **PLAIN
            ),
            train_dataset=Dataset.from_list([{"prompt": "x"}] * 8),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )

    def loss(kl_weight: float) -> tuple[Tensor, Tensor]:
        logprobs = rows["logprobs"].clone().requires_grad_()
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None)
        trainer.beta, trainer.current_gradient_accumulation_steps = kl_weight, 1
        ids = torch.zeros_like(mask, dtype=torch.long)
        inputs = {"prompt_ids": ids, "prompt_mask": ids + 1, "completion_ids": ids, "completion_mask": mask}
        inputs |= {"advantages": torch.tensor(given["advantages"]), "num_items_in_batch": mask.sum()}
        inputs |= {"old_per_token_logps": rows["drawn"], "ref_per_token_logps": rows["reference"]}
        return trainer._compute_loss(trainer.model, inputs), logprobs

    plain, logprobs = loss(0.0)
    plain.backward()
    with_kl, _ = loss(given["kl_weight"])
    assert logprobs.grad is not None
    return {"loss": plain.item(), "gradient": logprobs.grad[mask.bool()].tolist(), "loss_with_kl": with_kl.item()}


def reward(given: Given) -> Found:
    """RewardTrainer's loss of (chosen, rejected) scores, and its gradient."""
    from trl import RewardConfig, RewardTrainer

    with tempfile.TemporaryDirectory() as folder:
        save_tiny_llama(Path(folder))
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32),
            args=RewardConfig(output_dir=folder, max_length=None, **PLAIN),
            train_dataset=Dataset.from_list([{"chosen": "ab", "rejected": "ac"}] * 2),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
    scores = torch.tensor([*given["chosen"], *given["rejected"]], requires_grad=True)

    class Scored(nn.Module):
        def forward(self, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=scores[:, None])

    loss = trainer.compute_loss(Scored(), {"attention_mask": torch.ones(len(scores), 1)})
    loss.backward()
    assert scores.grad is not None
    return {"loss": loss.item(), "gradient": scores.grad.tolist()}


def logprobs(given: Given) -> Found:
    """selective_log_softmax."""
    from trl.trainer.utils import selective_log_softmax

    return {"logprobs": selective_log_softmax(torch.tensor(given["logits"]), torch.tensor(given["ids"])).tolist()}


def ppo(given: Given) -> Found:
    """Rewards a token with k1 and k3, GAE, returns, whitened advantages, and both losses. All rows have the full length."""
    from trl.experimental.ppo import ppo_trainer

    source = inspect.getsource(ppo_trainer.PPOTrainer.train)
    ahead = _lines(source, "logr = ref_logprobs - logprobs", "advantages = masked_whiten(advantages, ~padding_mask)")
    losses = _lines(source, "vpredclipped = torch.clamp(", "loss = pg_loss + args.vf_coef * vf_loss")
    rows = {name: torch.tensor(given[name]) for name in ("drawn", "reference", "values", "scores", "logprobs", "new_values")}
    nothing = torch.zeros_like(rows["drawn"], dtype=torch.bool)
    length = nothing.shape[1]
    found: Found = {}
    for estimator in ("k1", "k3"):
        arguments = {name: given[name] for name in ("gamma", "lam")} | {"kl_coef": given["kl_weight"], "cliprange": given["clip"]}
        names: dict[str, Any] = {
            **vars(ppo_trainer),
            "args": SimpleNamespace(**arguments, kl_estimator=estimator, whiten_rewards=False, cliprange_value=0.2, vf_coef=0.1),
            "logprobs": rows["drawn"],
            "ref_logprobs": rows["reference"],
            "values": rows["values"],
            "scores": rows["scores"],
            "responses": nothing,
            "padding_mask": nothing,
            "padding_mask_p1": nothing,
            "sequence_lengths": torch.full((len(nothing),), length - 1),
            "sequence_lengths_p1": torch.full((len(nothing),), length),
        }
        exec(ahead.replace("advantages = masked_whiten", "whitened = masked_whiten"), names)
        found[estimator] = {name: names[name].tolist() for name in ("rewards", "advantages", "returns", "whitened")}
    new_logprobs, vpred = rows["logprobs"].requires_grad_(), rows["new_values"].requires_grad_()
    names |= {"mb_advantage": names["whitened"], "mb_return": names["returns"], "mb_values": rows["values"], "mb_logprobs": rows["drawn"]}
    names |= {"new_logprobs": new_logprobs, "vpred": vpred, "micro_batch_inds": slice(None)}
    exec(losses, names)
    torch.autograd.backward([names["pg_loss"], names["vf_loss"]])
    assert new_logprobs.grad is not None
    assert vpred.grad is not None
    found["policy"] = {"loss": names["pg_loss"].item(), "gradient": new_logprobs.grad.flatten().tolist()}
    found["value"] = {"loss": names["vf_loss"].item(), "gradient": vpred.grad.flatten().tolist()}
    return found


SOURCES: dict[str, tuple[str, Callable[[Given], Found]]] = {
    "grpo": ("GRPOTrainer._compute_loss", grpo),
    "reward": ("RewardTrainer.compute_loss", reward),
    "logprobs": ("trl.trainer.utils.selective_log_softmax", logprobs),
    "ppo": ("trl.experimental.ppo.PPOTrainer.train", ppo),
}


def _lines(source: str, first: str, last: str) -> str:
    """From the line that begins with `first` to the one that begins with `last`."""
    lines = textwrap.dedent(source).splitlines()
    [begin] = [index for index, line in enumerate(lines) if line.strip().startswith(first)]
    [end] = [index for index, line in enumerate(lines) if line.strip().startswith(last)]
    return textwrap.dedent("\n".join(lines[begin : end + 1]))


def _padded(rows: list[list[float]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def main(names: Sequence[str]) -> None:
    """Write the file again, with what the installed TRL computes."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    for name in names or SOURCES:
        source, compute = SOURCES[name]
        given = recorded[name]["given"]
        recorded[name] = {"source": f"TRL {version('trl')}, {source}", "given": given, "found": compute(given)}
    RECORDED.write_text(_compact(recorded), encoding="utf-8")


def _compact(recorded: dict[str, Any]) -> str:
    """A line for each name of a source's numbers."""
    parts = []
    for name, entry in recorded.items():
        lines = [f'  "source": {json.dumps(entry["source"])}']
        for part in ("given", "found"):
            inner = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in entry[part].items())
            lines.append(f'  "{part}": {{\n{inner}\n  }}')
        parts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
