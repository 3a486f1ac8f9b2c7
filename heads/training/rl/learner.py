"""The policy's and the value head's update on one round of replies. Holds two heads and a tied policy's output matrix, never the trunk.

A prompt and its replies are one tree of boundary states (tree.py), which both heads read. What is drawn at random depends on the round's
seed alone. In several processes each computes the gradients of its own groups, and all take the same steps with their sum.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyhead.heads.model.family import HeadModule, trainable_parameters
from polyhead.heads.training.losses import a2c_loss, clipped_share, ppo_loss, pretraining_loss, token_logprobs, value_loss
from polyhead.heads.training.optimiser import HeadOptimiser
from polyhead.heads.training.packing import pack
from polyhead.heads.training.processes import ALONE, Processes
from polyhead.heads.training.returns import advantages, explained_variance, kl_k1, kl_k2, kl_k3, token_rewards, whitened
from polyhead.heads.training.rl.config import Algorithm, KlEstimator, RLConfig
from polyhead.heads.training.rl.pretraining import PretrainingTexts
from polyhead.heads.training.rl.rollout import Group, Reply
from polyhead.heads.training.tree import PackedTree, Run, by_tokens, pack_tree

_KL = {KlEstimator.K1: kl_k1, KlEstimator.K2: kl_k2, KlEstimator.K3: kl_k3}


class NotFinite(RuntimeError):
    """A loss or a gradient was NaN or infinite; the parameters are half updated and have to be restored."""


@dataclass(frozen=True)
class Targets:
    """What one reply is trained towards, a number a token."""

    advantages_T: np.ndarray
    returns_T: np.ndarray


@dataclass
class Update:
    """What a round's update says about itself."""

    policy_losses: list[float] = field(default_factory=list)  # one of each minibatch
    value_losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)  # the policy's, before clipping
    clipped: list[float] = field(default_factory=list)
    pretraining_losses: list[float] = field(default_factory=list)  # nats a token, without their weight; empty: no texts are mixed in
    gap: float = 0.0  # largest difference to the server's log-probs, before the first step
    value_gap: float = 0.0  # likewise of the values
    explained_variance: float = float("nan")
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by part: policy, value, optimiser

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add a block's seconds to a part."""
        began_at = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - began_at


class Learner:
    """Two heads with their optimisers. A value is (output - value_bias) / value_scale, as it is served."""

    def __init__(
        self,
        policy: HeadModule,
        value: HeadModule,
        config: RLConfig,
        value_bias: float = 0.0,
        value_scale: float = 1.0,
        pretraining: PretrainingTexts | None = None,
        processes: Processes = ALONE,
        policy_parameters: Mapping[str, nn.Parameter] | None = None,  # what is trained of the policy, such as an adapter; None: all its own
        value_parameters: Mapping[str, nn.Parameter] | None = None,  # likewise
    ) -> None:
        self.processes = processes
        self.policy = policy
        self.value = value
        self.config = config
        self.value_bias, self.value_scale = value_bias, value_scale
        self.pretraining = pretraining
        output = {"score.weight": config.value_output_rate}
        of_policy, of_value = policy_parameters or trainable_parameters(policy), value_parameters or trainable_parameters(value)
        self.policy_optimiser = HeadOptimiser(of_policy, config.learning_rate, betas=config.betas, average_decay=config.average_decay)
        self.value_optimiser = HeadOptimiser(of_value, config.value_learning_rate, output, config.betas)

    def targets(self, replies: Sequence[Reply], rewards: Sequence[float]) -> list[Targets]:
        """Of each reply whose reward, KL left out, is `rewards[i]`: advantages, whitened over the round, and returns for the value head.

        Nothing is bootstrapped behind the last token: the reward stands on it, whatever ended the reply.
        """
        config, found = self.config, []
        for reply, reward in zip(replies, rewards, strict=True):
            kl_T = _KL[config.kl_estimator](reply.logprobs_T, reply.reference_T)
            rewards_T = token_rewards(kl_T, reward, config.kl_weight)
            found.append(advantages(rewards_T, reply.values_T, 0.0, config.discount, config.advantage_lam))
        returns = [each + reply.values_T for each, reply in zip(found, replies, strict=True)]
        return [Targets(a, b) for a, b in zip(whitened(found), returns, strict=True)]

    def update(self, groups: Sequence[Group], targets: Sequence[Targets], seed: int, share: float, value_only: bool = False) -> Update:
        """Train both heads at `share` of the learning rates; `targets` are of all replies in the groups' order. Raises NotFinite.

        What it says of itself is of all processes' groups.
        """
        done, firsts = Update(), np.cumsum([0, *(len(group.replies) for group in groups)])
        joined = [np.concatenate([reply.values_T for group in groups for reply in group.replies])]
        joined.append(np.concatenate([each.returns_T for each in targets]))
        done.explained_variance = explained_variance(*joined)
        shuffle = torch.Generator().manual_seed(seed)
        for _ in range(self.config.epochs):
            order = order_of(len(groups), shuffle)
            for chosen in _minibatches(order, groups, self.config.minibatches):
                of = {index: targets[firsts[index] : firsts[index + 1]] for index in chosen}
                self._minibatch([(groups[index], of[index]) for index in chosen], done)
                if self.pretraining is not None and not value_only:
                    self._mix_in(self.pretraining, done)
                self._step(done, share, value_only)
        return done

    def _minibatch(self, chosen: Sequence[tuple[Group, Sequence[Targets]]], done: Update) -> None:
        """Gradients of both heads' mean losses over the groups' tokens."""
        num_tokens = sum(len(reply.token_ids) for group, _ in chosen for reply in group.replies)
        own = [each for each in chosen if each[0].is_here]
        policy_loss = value = clipped = gap = value_gap = 0.0
        for micro in by_tokens([group.num_tokens for group, _ in own], self.config.micro_batch_tokens):
            batch = _Batch([own[index] for index in micro])
            share = len(batch.token_ids) / num_tokens
            with done.timed("policy"):
                logprobs, loss = self._policy_loss(batch)
                torch.autograd.backward(loss * share)
            with done.timed("value"):
                values, loss_of_value = self._value_loss(batch)
                torch.autograd.backward(loss_of_value * share)
            policy_loss += float(loss.detach()) * share
            value += float(loss_of_value.detach()) * share
            clipped += clipped_share(logprobs, batch.drawn, self.config.clip) * share
            gap, value_gap = max(gap, _largest(logprobs - batch.drawn)), max(value_gap, _largest(values - batch.values))
        if not done.policy_losses:
            done.gap, done.value_gap = self.processes.largest([gap, value_gap])
        policy_loss, value, clipped = self.processes.sums([policy_loss, value, clipped])
        done.policy_losses.append(policy_loss)
        done.value_losses.append(value)
        done.clipped.append(clipped)

    def _mix_in(self, pretraining: PretrainingTexts, done: Update) -> None:
        """Add the gradient of the policy's loss on this step's pretraining texts."""
        (texts, num_tokens), total = pretraining.of_step(self.policy_optimiser.num_updates, self.processes), 0.0
        with done.timed("policy"):
            for micro in by_tokens([len(text.token_ids) for text in texts], self.config.micro_batch_tokens):
                packed = pack([texts[index] for index in micro])
                share = len(packed.next_tokens) / num_tokens
                with self._precision():
                    logits = self.policy(packed.states_1TD, packed.positions_1T, packed.next_token_rows, attention_mask=packed.mask_11TT)
                    logprobs = token_logprobs(logits, packed.next_tokens)
                torch.autograd.backward(pretraining_loss(logprobs, pretraining.weight) * share)
                total -= float(logprobs.detach().mean()) * share
        done.pretraining_losses.append(self.processes.sums([total])[0])

    def _policy_loss(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        with self._precision():
            logits = self.policy(batch.states, batch.positions, batch.rows, attention_mask=batch.mask)
            logprobs = token_logprobs(logits / self.config.temperature if self.config.temperature != 1.0 else logits, batch.token_ids)
            if self.config.algorithm is Algorithm.A2C:
                return logprobs, a2c_loss(logprobs, batch.advantages)
            return logprobs, ppo_loss(logprobs, batch.drawn, batch.advantages, self.config.clip)

    def _value_loss(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        with self._precision():
            output = self.value(batch.states, batch.positions, batch.rows, attention_mask=batch.mask).float()
            values = (output - self.value_bias) / self.value_scale
            return values, value_loss(values, batch.returns)

    def _step(self, done: Update, share: float, value_only: bool) -> None:
        with done.timed("optimiser"):
            for each in (self.policy_optimiser, self.value_optimiser):
                self.processes.sum_gradients(each.parameters.values())
            norms = [each.clip(self.config.max_grad_norm) for each in (self.policy_optimiser, self.value_optimiser)]
            done.grad_norms.append(norms[0])
            losses = [done.policy_losses[-1], done.value_losses[-1], *done.pretraining_losses[-1:]]
            if not np.isfinite([*losses, *norms]).all():
                raise NotFinite(f"a loss or its gradient is not finite: {done.policy_losses[-1]:g}, {done.value_losses[-1]:g}, {norms}")
            if not value_only:
                self.policy_optimiser.step(share)
            self.value_optimiser.step(share)
            self.policy_optimiser.zero_grad()
            self.value_optimiser.zero_grad()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        device = next(iter(self.policy_optimiser.parameters.values())).device.type
        return torch.autocast(device, dtype=torch.bfloat16) if self.config.autocast else contextlib.nullcontext()

    # to a checkpoint and back

    def tensors(self) -> dict[str, Tensor]:
        """Both heads and their moments, sharing memory: policy/parameter/NAME and so on."""
        parts = {"policy": self.policy_optimiser, "value": self.value_optimiser}
        return {f"{part}/{name}": each.detach() for part, of in parts.items() for name, each in of.tensors().items()}

    @property
    def num_updates(self) -> tuple[int, int]:
        """Of the policy and of the value head."""
        return self.policy_optimiser.num_updates, self.value_optimiser.num_updates

    def restore(self, tensors: dict[str, Tensor], num_updates: Sequence[int]) -> None:
        """Become what they were taken from; gradients are forgotten."""
        for part, of, count in zip(("policy", "value"), (self.policy_optimiser, self.value_optimiser), num_updates, strict=True):
            own = {name.removeprefix(f"{part}/"): each for name, each in tensors.items() if name.startswith(f"{part}/")}
            of.restore(own, count)
            of.zero_grad()


def order_of(num_groups: int, shuffle: torch.Generator) -> list[int]:
    """In which groups are trained on, in one pass."""
    return torch.randperm(num_groups, generator=shuffle).tolist()


class _Batch:
    """Some groups as one row of states, and a number for each token of their replies, R in all."""

    def __init__(self, chosen: Sequence[tuple[Group, Sequence[Targets]]]) -> None:
        runs: list[Run] = []
        rows_of: list[int] = []
        for group, _ in chosen:
            root = len(runs)
            runs.append(Run(group.prompt_ids, torch.from_numpy(group.states_PD)))
            for reply in group.replies:
                rows_of.append(len(runs))
                runs.append(Run(reply.token_ids, torch.from_numpy(reply.states_TD), root))
        tree: PackedTree = pack_tree(runs)
        replies = [reply for group, _ in chosen for reply in group.replies]
        targets = [each for _, of in chosen for each in of]
        self.states, self.positions, self.mask = tree.states_1TD, tree.positions_1T, tree.mask_11TT
        self.rows = torch.tensor([row for run in rows_of for row in tree.predicting_rows(run)])
        self.token_ids = torch.tensor([token for reply in replies for token in reply.token_ids])
        self.drawn = _joined([reply.drawn_T for reply in replies])
        self.values = _joined([reply.values_T for reply in replies])
        self.advantages = _joined([each.advantages_T for each in targets])
        self.returns = _joined([each.returns_T for each in targets])


def _minibatches(order: Sequence[int], groups: Sequence[Group], count: int) -> Iterator[list[int]]:
    """The order cut into at most `count` runs with about as many tokens each."""
    ends = np.cumsum([groups[index].num_tokens for index in order])
    places = np.minimum((ends - 1) * count // ends[-1], count - 1)
    for place in range(count):
        if chosen := [index for index, at in zip(order, places, strict=True) if at == place]:
            yield chosen


def _joined(rows: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(rows).astype(np.float32))


def _largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())
