"""Our losses, advantages and KL estimates against TRL's own numbers, which `python -m tests.trl.numbers` recorded with their source."""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyhead.heads.training import losses, returns

RECORDED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("trl_numbers.json").read_text())
TRL: dict[str, Any] = {name: entry["found"] for name, entry in RECORDED.items()}
GIVEN: dict[str, Any] = {name: entry["given"] for name, entry in RECORDED.items()}


def joined(rows: list[list[float]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(rows)))


def near(value: object) -> Any:
    return pytest.approx(value, abs=1e-5)


def test_clipped_loss_and_k3_are_grpo_s() -> None:
    given, trl = GIVEN["grpo"], TRL["grpo"]
    logprobs = joined(given["logprobs"]).requires_grad_()
    advantages = torch.tensor(given["advantages"]).repeat_interleave(torch.tensor([len(row) for row in given["drawn"]]))
    loss = losses.ppo_loss(logprobs, joined(given["drawn"]), advantages, given["clip"])
    loss.backward()
    assert loss.item() == near(trl["loss"])
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == near(trl["gradient"])
    k3 = returns.kl_k3(joined(given["logprobs"]).numpy(), joined(given["reference"]).numpy()).mean()
    assert loss.item() + given["kl_weight"] * k3 == near(trl["loss_with_kl"])


def test_pair_loss_is_the_reward_trainer_s() -> None:
    """A prompt with two replies is one of its pairs."""
    given, trl = GIVEN["reward"], TRL["reward"]
    scores = torch.tensor([*given["chosen"], *given["rejected"]], requires_grad=True)
    count = len(given["chosen"])
    loss = torch.stack([losses.ranking_loss(scores[[i, i + count]], [(0, 1)]) for i in range(count)]).mean()
    loss.backward()
    assert loss.item() == near(trl["loss"])
    assert scores.grad is not None
    assert scores.grad.tolist() == near(trl["gradient"])


def test_log_probs_of_tokens() -> None:
    given = GIVEN["logprobs"]
    assert losses.token_logprobs(torch.tensor(given["logits"]), given["ids"]).tolist() == near(TRL["logprobs"]["logprobs"])


@pytest.mark.parametrize(("name", "estimator"), [("k1", returns.kl_k1), ("k3", returns.kl_k3)])
def test_rewards_and_advantages_are_the_ppo_trainer_s(name: str, estimator: Any) -> None:
    """Whitened ones but for the deviation: TRL divides by the sample's, with n - 1, and ours by that of the n tokens themselves."""
    given, trl = GIVEN["ppo"], TRL["ppo"][name]
    found = []
    for row, reward in enumerate(given["scores"]):
        rewards = returns.token_rewards(estimator(given["drawn"][row], given["reference"][row]), reward, given["kl_weight"])
        assert rewards == near(trl["rewards"][row])
        found.append(returns.advantages(rewards, given["values"][row], 0.0, given["gamma"], given["lam"]))
        assert found[-1] == near(trl["advantages"][row])
        assert found[-1] + given["values"][row] == near(trl["returns"][row])
    num_tokens = sum(map(len, found))
    whitened = np.concatenate(returns.whitened(found)) * math.sqrt((num_tokens - 1) / num_tokens)
    assert whitened == near(joined(trl["whitened"]).tolist())


def test_losses_of_policy_and_value_are_the_ppo_trainer_s() -> None:
    """With TRL's whitened advantages; no new value is so far from the old one that TRL would clip it, which ours never does."""
    given, trl = GIVEN["ppo"], TRL["ppo"]
    logprobs, values = (joined(given[name]).requires_grad_() for name in ("logprobs", "new_values"))
    policy = losses.ppo_loss(logprobs, joined(given["drawn"]), joined(trl["k3"]["whitened"]), given["clip"])
    value = losses.value_loss(values, joined(trl["k3"]["returns"]))
    torch.autograd.backward([policy, value])
    for loss, of, name in ((policy, logprobs, "policy"), (value, values, "value")):
        assert loss.item() == near(trl[name]["loss"])
        assert of.grad is not None
        assert of.grad.tolist() == near(trl[name]["gradient"])
