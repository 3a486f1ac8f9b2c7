"""How a variant draws replies and hands its policy on: on a server with a frozen trunk, or in plain torch with whole models.

The update in between is the same code for all of them (`heads.training.rl.learner`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoTokenizer, GenerationConfig

from polyhead.client import Client
from polyhead.client.rlhf import judges
from polyhead.client.rlhf.evidence.freezing.models import ALPHA, TokenStates, Trainee, WholeModel, adapters_beside, whole_head
from polyhead.client.rlhf.evidence.freezing.plan import Variant
from polyhead.client.wire.options import PushOptions
from polyhead.heads.model.family import HeadModule
from polyhead.heads.training.data import Prompt
from polyhead.heads.training.losses import token_logprobs
from polyhead.heads.training.remote import pull_module, weights_of
from polyhead.heads.training.rl.config import RLConfig
from polyhead.heads.training.rl.learner import Learner
from polyhead.heads.training.rl.prompts import Sourced
from polyhead.heads.training.rl.rewards import JudgeReward
from polyhead.heads.training.rl.rollout import Group, Reply, Roles, Rollout, draw
from polyhead.heads.training.rl.served import Arm
from polyhead.heads.training.tree import Run, pack_tree

NAME = "freezing"  # of the heads that every run on a server trains, from the reference on


class Side(Protocol):
    """One policy that is trained, and where it draws."""

    learner: Learner
    policy: Trainee
    value: Trainee
    other_bytes: int  # of tensors that this process holds beside the two models in training

    def draw(self, prompts: Sequence[Sourced], config: RLConfig, seed: int) -> Rollout:
        """Replies of the present policy, `config.samples` to each prompt."""

    def hand_on(self, number: int) -> None:
        """Make the trained weights those that draw."""


class ServedSide:
    """Heads, or an adapter and a value head, above the trunk of a server."""

    def __init__(self, client: Client, variant: Variant, reward: JudgeReward, config: RLConfig) -> None:
        self.client, self.reward, self.arm, self.rank = client, reward, Arm(client, NAME), variant.rank
        self.arm.start("reference", "value")
        self.base = client.head("reference").ref
        policy, self.value = pull_module(client, self.base), whole_head(pull_module(client, self.arm.value))
        self.other_bytes = 0
        self.policy = adapters_beside(policy, variant.rank, config.seed) if variant.rank else whole_head(policy)
        self.learner = _learner(self.policy, self.value, config)

    def draw(self, prompts: Sequence[Sourced], config: RLConfig, seed: int) -> Rollout:
        return draw(self.client, prompts, Roles(self.arm.policy, self.arm.value, "reference"), self.reward, config, seed)

    def hand_on(self, number: int) -> None:
        """One activation of both."""
        adapter: PushOptions = {"lora": {"r": self.rank, "lora_alpha": ALPHA}, "base": self.base} if self.rank else {}
        options: dict[str, PushOptions] = {self.arm.policy: {"kind": "policy", **adapter}, self.arm.value: {"kind": "value"}}
        own: Any = {name: each.detach() for name, each in self.policy.parameters.items()} if self.rank else weights_of(self.policy.model)
        weights = {self.arm.policy: own, self.arm.value: weights_of(self.value.model)}
        self.client.update(weights, options=options, note=f"freezing: round {number}")


class WholeSide:
    """Policy, value and reference as whole models in this process, which draws with transformers' own `generate`."""

    def __init__(self, folder: Path, reward: JudgeReward, config: RLConfig) -> None:
        self.reward, self.tokenizer = reward, AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = WholeModel.load(folder)
        self.reference = copy.deepcopy(model).requires_grad_(False)
        self.other_bytes = sum(each.numel() * each.element_size() for each in self.reference.parameters())
        self.policy, self.value = model.trainee(), WholeModel.load(folder, is_scalar=True).trainee()
        self.learner = _learner(self.policy, self.value, config)

    def hand_on(self, number: int) -> None:
        """The same tensors draw."""

    def draw(self, prompts: Sequence[Sourced], config: RLConfig, seed: int) -> Rollout:
        ids = [self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False) for prompt, _ in prompts]
        drawn = self._generate(ids, config, seed)
        groups = []
        for index, (prompt, source) in enumerate(prompts):
            own = drawn[index * config.samples : (index + 1) * config.samples]
            groups.append(self._group(prompt, source, ids[index], own))
        return Rollout(groups)

    @torch.no_grad()
    def _generate(self, prompts: Sequence[list[int]], config: RLConfig, seed: int) -> list[list[int]]:
        """The sampled ids of each reply, the token that ends it included; a prompt's replies are neighbours."""
        model: Any = self.policy.model.decoder
        ends, longest = _ends_of(model), max(map(len, prompts))
        padded = torch.tensor([[ends[0]] * (longest - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
        sampling = {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": 1.0}
        limits = {"max_new_tokens": config.max_new_tokens, "num_return_sequences": config.samples}
        torch.manual_seed(seed)
        settings = GenerationConfig(**sampling, **limits, eos_token_id=ends, pad_token_id=ends[0], use_cache=True)
        rows = model.generate(padded, attention_mask=mask, generation_config=settings)[:, longest:].tolist()
        return [_up_to_the_end(row, ends) for row in rows]

    @torch.no_grad()
    def _group(self, prompt: Prompt, source: str, ids: list[int], drawn: Sequence[list[int]]) -> Group:
        """With the numbers that a server would send along."""
        states = TokenStates().states([ids, *drawn])
        tree = pack_tree([Run(ids, states[0]), *(Run(reply, own, 0) for reply, own in zip(drawn, states[1:], strict=True))])
        rows = torch.tensor([row for reply in range(len(drawn)) for row in tree.predicting_rows(reply + 1)])
        tokens = torch.tensor([token for reply in drawn for token in reply])

        def read(model: HeadModule) -> torch.Tensor:
            output: torch.Tensor = model(tree.states_1TD, tree.positions_1T, rows, attention_mask=tree.mask_11TT)
            return output.float()

        numbers = [*(token_logprobs(read(model), tokens) for model in (self.policy.model, self.reference)), read(self.value.model)]
        by_reply = zip(*(torch.split(each, [len(reply) for reply in drawn]) for each in numbers), strict=True)
        found = [self._reply(prompt, reply, *own) for reply, own in zip(drawn, by_reply, strict=True)]
        return Group(prompt, source, ids, states[0].numpy(), found)

    def _reply(self, prompt: Prompt, ids: list[int], logprobs_T: torch.Tensor, reference_T: torch.Tensor, values_T: torch.Tensor) -> Reply:
        text, is_ended = self.tokenizer.decode(ids, skip_special_tokens=True), ids[-1] in _ends_of(self.policy.model.decoder)
        return Reply(
            token_ids=ids,
            text=text,
            drawn_T=logprobs_T.numpy(),
            logprobs_T=logprobs_T.numpy(),
            reference_T=reference_T.numpy(),
            values_T=values_T.numpy(),
            versions_T=np.zeros(len(ids), np.int64),
            states_TD=TokenStates().states([ids])[0].numpy(),
            parts={"judge": self.reward.judge(prompt, text), **judges.verdicts(text)},
            is_terminated=is_ended,
            is_valid=is_ended,
        )


def _learner(policy: Trainee, value: Trainee, config: RLConfig) -> Learner:
    return Learner(policy.model, value.model, config, policy_parameters=policy.parameters, value_parameters=value.parameters)


def _ends_of(model: Any) -> list[int]:
    """Ids that end a reply: those that the server takes, too."""
    ends = model.generation_config.eos_token_id
    return list(ends) if isinstance(ends, list) else [ends]


def _up_to_the_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """Without the padding behind the first end."""
    return row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))]
