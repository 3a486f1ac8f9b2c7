"""A round's rollouts by one Generate call: replies with the policy's and the reference's log-probs, values, scores and boundary states.

Every number is the server's, as its heads computed it while they drew, so the trainer needs no trunk and no second pass. Of several
processes the main one draws; each then has the numbers of all replies, and the boundary states of its share of the prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead.client import Client, Sample
from polyhead.heads.training.data import Prompt
from polyhead.heads.training.rl.config import RLConfig
from polyhead.heads.training.rl.rewards import Reward

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reply:
    """One sampled reply of T tokens."""

    token_ids: list[int]
    text: str
    drawn_T: Floats  # log-probs under the distribution drawn from, each token's by the version that drew it
    logprobs_T: Floats  # raw, at temperature 1
    reference_T: Floats  # the reference's, raw
    values_T: Floats  # V before each token
    versions_T: NDArray[np.int64]  # of the policy that drew each token
    states_TD: Floats
    parts: dict[str, float]  # what the reward is made of
    is_terminated: bool  # it ended by itself
    is_valid: bool  # as its transcript format wants it


@dataclass(frozen=True, eq=False)
class Group:
    """A prompt of P tokens and its replies."""

    prompt: Prompt
    source: str  # which of the prompt sources it came from
    prompt_ids: list[int]
    states_PD: Floats
    replies: list[Reply]

    @property
    def is_here(self) -> bool:
        """Whether this process has its boundary states, and so trains on it."""
        return len(self.states_PD) > 0

    @property
    def num_tokens(self) -> int:
        """Of the prompt once and of all replies."""
        return len(self.prompt_ids) + sum(len(reply.token_ids) for reply in self.replies)


@dataclass(frozen=True)
class Rollout:
    """One round's replies, and what was left out."""

    groups: list[Group]
    num_failed: int = 0  # samples without numbers to train on
    first_failure: str = ""

    @property
    def replies(self) -> list[Reply]:
        return [reply for group in self.groups for reply in group.replies]

    @property
    def mean_value(self) -> float:
        """What the value head expects of a reply, mean over all tokens."""
        return float(np.concatenate([reply.values_T for reply in self.replies]).mean())

    def shared_out(self, order: Sequence[int], count: int) -> list[Rollout]:
        """The same for each of `count` processes, with the boundary states of its own groups alone.

        They take turns in `order`, in which groups are trained on, so that each has about as much of every minibatch.
        """
        owners = {index: place % count for place, index in enumerate(order)}

        def of(rank: int) -> list[Group]:
            return [group if owners[index] == rank else _without_states(group) for index, group in enumerate(self.groups)]

        return [dataclasses.replace(self, groups=of(rank)) for rank in range(count)]


def _without_states(group: Group) -> Group:
    replies = [dataclasses.replace(reply, states_TD=reply.states_TD[:0]) for reply in group.replies]
    return dataclasses.replace(group, states_PD=group.states_PD[:0], replies=replies)


@dataclass(frozen=True)
class Roles:
    """Which served heads a rollout reads, as references: "policy-mix@7"."""

    policy: str
    value: str
    reference: str


class RolloutFailed(RuntimeError):
    """No reply of a round can be trained on; the message holds the first reason."""


def draw(
    client: Client, prompts: Sequence[tuple[Prompt, str]], roles: Roles, reward: Reward, config: RLConfig, seed: int
) -> Rollout:
    """Sample and score replies to (prompt, source) pairs. Raises RolloutFailed if none is left, and RewardError if the judge fails."""
    asks = dict(reward.asks)
    samples = client.generate(
        [prompt for prompt, _ in prompts],
        n=config.samples,
        head=roles.policy,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=seed,
        score=[roles.reference, roles.value, *asks.pop("score")],
        return_states=True,
        **asks,
    )
    failures, groups = [], []
    for index, (prompt, source) in enumerate(prompts):
        replies: list[tuple[Sample, Reply]] = []
        for sample in (each for each in samples if each.prompt_index == index):
            if why := _failure(sample, roles):
                failures.append(why)
            else:
                replies.append((sample, _reply(prompt, sample, roles, reward)))
        if replies:
            first = replies[0][0]
            assert first.states is not None, "states were asked for"
            ids = first.prompt_token_ids
            groups.append(Group(prompt, source, ids, first.states[: len(ids)], [reply for _, reply in replies]))
    if not groups:
        raise RolloutFailed(f"none of {len(samples)} replies can be trained on; the first one: {failures[0]}")
    return Rollout(groups, len(failures), failures[0] if failures else "")


def _failure(sample: Sample, roles: Roles) -> str:
    """Why there is nothing to train on, else an empty text."""
    if sample.error or not sample.token_ids:
        return sample.error or "it has no tokens"
    return next((f"{name}: {score.error}" for name, score in sample.scores.items() if score.error), "")


def _reply(prompt: Prompt, sample: Sample, roles: Roles, reward: Reward) -> Reply:
    assert sample.states is not None, "states were asked for"
    return Reply(
        token_ids=list(sample.token_ids),
        text=sample.text,
        drawn_T=sample.sampling_logprobs,
        logprobs_T=sample.logprobs,
        reference_T=sample.scores[roles.reference].logprobs,
        values_T=sample.scores[roles.value].values,
        versions_T=versions_of(sample),
        states_TD=sample.states[len(sample.prompt_token_ids) :],
        parts=reward.parts(prompt, sample),
        is_terminated=sample.terminated,
        is_valid=sample.valid,
    )


def versions_of(sample: Sample) -> NDArray[np.int64]:
    """(T,) the version that drew each token."""
    versions = np.full(len(sample.token_ids), sample.head_version, np.int64)
    for span in sample.spans:
        versions[span.start : span.end] = span.version
    return versions


