"""The two tasks that every variant is given: order replies as a judge does, and learn by RL what both judges reward.

Each measures itself on held-out questions, on the way and at the end, so that variants can be compared after the same data and after the
same time. The time of these measurements is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from polyhead.client.rlhf import judges
from polyhead.client.rlhf.evidence.freezing.data import Data, Row
from polyhead.client.rlhf.evidence.freezing.models import SCORE, Trainee
from polyhead.client.rlhf.evidence.freezing.plan import FreezingPlan, Unit
from polyhead.client.rlhf.evidence.freezing.sides import Side
from polyhead.client.rlhf.measure import ask
from polyhead.heads.training.fit import FitConfig, Schedule, Step
from polyhead.heads.training.preference import Ranked, fit_ranked, held_out_margins, ranked
from polyhead.heads.training.rl.config import RLConfig
from polyhead.heads.training.rl.learner import NotFinite
from polyhead.heads.training.rl.prompts import PromptPool, Sourced
from polyhead.heads.training.rl.report import Drawn
from polyhead.heads.training.rl.rewards import JudgeReward
from polyhead.heads.training.rl.rollout import Rollout
from polyhead.heads.training.state_store import States

SCORE_RATE = 1e-3  # of the new output, which starts at zero
MICRO_BATCH_TOKENS = 1024  # of one pass, for all variants: what a whole model's activations leave room for
Say = Callable[[str], None]


# ---- preference


def learn_preference(plan: FreezingPlan, unit: Unit, data: Data, trainee: Trainee, states: States, say: Say) -> dict[str, Any]:
    """Train on the judge's order of the base's replies; what it does to held-out pairs on the way, and in what time."""
    clock = Clock()
    rows = encoded(data.train, states)
    with clock.stopped():
        held_out = encoded(data.held_out, states)
    config = FitConfig(
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        learning_rate=plan.variants[unit.variant].preference_rate,
        learning_rates={SCORE: SCORE_RATE},
        schedule=Schedule.CONSTANT,
        checkpoint_steps=1_000_000,
        seed=unit.seed,
    )
    curve: list[dict[str, float]] = []

    def measured(step: Step) -> None:
        if step.number * plan.measures // step.num_steps > (step.number - 1) * plan.measures // step.num_steps:
            seconds = clock.seconds
            with clock.stopped():
                right = right_pairs(trainee, data.held_out, held_out)
            curve.append({"seconds": seconds, "share": step.number / step.num_steps, "accuracy": accuracy(right)})
            done = f"{step.number} of {step.num_steps} steps, {seconds:.0f} s"
            say(f"{done}: {curve[-1]['accuracy']:.3f} of held-out pairs, loss {step.loss:.3f}")

    fit_ranked(trainee.model, trainee.parameters, rows, config, on_step=measured)
    num_replies = sum(len(row.replies) for row in data.train)
    found = {"curve": curve, "pairs": right_pairs(trainee, data.held_out, held_out), "num_replies": num_replies}
    return {**found, "seconds": clock.seconds, "swap_bytes": trainee.swap_bytes, "training_bytes": trainee.training_bytes}


def encoded(rows: Sequence[Row], states: States) -> list[Ranked]:
    """With their boundary states."""
    return [ranked(row.prompt_ids, row.replies, row.ranks, states) for row in rows]


@torch.no_grad()
def right_pairs(trainee: Trainee, rows: Sequence[Row], encodings: Sequence[Ranked]) -> list[dict[str, float]]:
    """For each pair of a question's replies that the judge tells apart, whether the score does too: 1, 0, or a half for equal ones."""
    margins = held_out_margins(trainee.model, encodings)
    pairs = [(row.question, margin) for row, own in zip(rows, margins, strict=True) for margin in own]
    return [{"question": question, "right": 0.5 if margin == 0 else float(margin > 0)} for question, margin in pairs]


def accuracy(pairs: Sequence[dict[str, float]]) -> float:
    """Share of pairs that are ordered as the judge orders them."""
    return sum(pair["right"] for pair in pairs) / len(pairs)


# ---- reinforcement learning


def config_of(plan: FreezingPlan, unit: Unit) -> RLConfig:
    """The plan's, with the variant's rate."""
    rate = plan.variants[unit.variant].policy_rate
    return dataclasses.replace(plan.config, seed=unit.seed, learning_rate=rate, micro_batch_tokens=MICRO_BATCH_TOKENS)


def reward_of(plan: FreezingPlan, data: Data) -> JudgeReward:
    """Both judges, the preference in units of the base's standard deviation."""
    reward = plan.arm.reward("judge", data.spread)
    assert isinstance(reward, JudgeReward), "judges were asked for"
    return reward


def learn_by_rl(plan: FreezingPlan, config: RLConfig, data: Data, side: Side, say: Say) -> dict[str, Any]:
    """Rounds of drawing, one update, and handing on; then replies to held-out questions. A round says what the policy before it does."""
    pool, clock = PromptPool([(ask(question), "questions") for question in data.train_questions], seed=config.seed), Clock()
    rounds, failed, offset = list[dict[str, Any]](), "", None
    for number in range(1, config.rounds + 1):
        began_at = clock.seconds
        rollout = side.draw(pool.of_round(number, config.prompts), config, seed=config.seed * 1_000_003 + number)
        drawn_at, rewards = clock.seconds, [reply.parts["judge"] for reply in rollout.replies]
        drawn = Drawn.of(rollout, rewards)
        offset = drawn.reward if offset is None else offset
        targets = side.learner.targets(rollout.replies, [reward - offset for reward in rewards])
        try:
            update = side.learner.update(rollout.groups, targets, seed=config.seed * 1_000_003 + number, share=1.0)
        except NotFinite as error:
            failed = f"round {number}: {error}"
            break
        updated_at = clock.seconds
        side.hand_on(number)
        seconds = {"rollout": drawn_at - began_at, "update": updated_at - drawn_at, "push": clock.seconds - updated_at}
        rounds.append(
            {"number": number, "reward": drawn.reward, "kl": drawn.kl, "gap": update.gap, "parts": drawn.parts, "seconds": seconds}
        )
        say(f"round {number} of {config.rounds}: reward {drawn.reward:+.3f}, KL {drawn.kl:.2f}, {sum(seconds.values()):.1f} s")
    seconds_in_all = clock.seconds
    measured = dataclasses.replace(config, samples=plan.held_out_samples)
    held_out: list[Sourced] = [(ask(question), "held out") for question in data.held_out_questions]
    replies = judged(side.draw(held_out, measured, seed=config.seed * 10 + 3))
    found = {"failed": failed, "rounds": rounds, "replies": replies, "seconds": seconds_in_all, "swap_bytes": side.policy.swap_bytes}
    return {**found, "training_bytes": side.policy.training_bytes + side.value.training_bytes + side.other_bytes}


def judged(rollout: Rollout) -> list[dict[str, float]]:
    """What both judges say of each reply, and how far it is from the base."""
    rows = []
    for question, group in enumerate(rollout.groups):
        for reply in group.replies:
            kl = float((reply.logprobs_T - reply.reference_T).sum())
            verdicts = {"preference": judges.preference(reply.text), "broken": float(judges.is_broken(reply.text))}
            verdicts |= {"kept_and_preferred": float(judges.is_kept_and_preferred(reply.text)), "reward": reply.parts["judge"]}
            rows.append({"question": float(question), **verdicts, "kl": kl, "length": float(len(reply.token_ids))})
    return rows


class Clock:
    """Seconds since it was made, without those that it stood still."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_at

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stand still for the block."""
        began_at = time.monotonic()
        try:
            yield
        finally:
            self._began_at += time.monotonic() - began_at
