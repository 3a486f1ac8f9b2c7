"""What one RL round says: numbers for a log file, and one line for a person. Knows no model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyhead.heads.training.returns import deviation, kl_k1
from polyhead.heads.training.rl.learner import Update
from polyhead.heads.training.rl.rollout import Rollout

PARTS = ("rollout", "policy", "value", "optimiser", "checkpoint", "push")  # of a round's wall time


@dataclass(frozen=True)
class RoundReport:
    """One round. Means are over its replies, which the version named here drew, before the update."""

    number: int
    policy_version: int  # drew the replies
    reward: float  # without KL
    reward_deviation: float
    kl: float  # nats a reply, k1
    kl_per_token: float
    length: float  # tokens
    terminated: float  # share that ended by itself
    parts: dict[str, float]  # of the reward
    sources: dict[str, int]  # prompts by source
    explained_variance: float
    value_loss: float
    policy_loss: float
    clipped: float  # share of tokens
    grad_norm: float
    gap: float  # trainer's log-probs against the server's, before the update
    value_gap: float
    seconds: dict[str, float]  # by part of PARTS
    cpu_seconds: float  # of this process
    num_replies: int
    num_failed: int
    pretraining_loss: float | None = None  # nats a token of the texts mixed in, where there are some

    @property
    def cpu_per_reply(self) -> float:
        return self.cpu_seconds / max(1, self.num_replies)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {name: None if value != value else value for name, value in dataclasses.asdict(self).items()}  # JSON has no NaN

    def numbers(self) -> dict[str, float]:
        """For curves."""
        plain = {name: value for name, value in dataclasses.asdict(self).items() if isinstance(value, int | float)}
        named = [("part", self.parts), ("seconds", self.seconds)]
        return plain | {f"{prefix}/{name}": value for prefix, of in named for name, value in of.items()}

    def line(self, rounds: int) -> str:
        """For people."""
        parts = "".join(f" {name} {value:+.2f}" for name, value in self.parts.items() if name not in ("judge", "recipe"))
        times = " ".join(f"{name} {self.seconds.get(name, 0.0):.1f}" for name in PARTS)
        mixed = "" if self.pretraining_loss is None else f", text {self.pretraining_loss:.3f}"
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        explained = f"{self.explained_variance:+.2f}" if math.isfinite(self.explained_variance) else "none"  # all returns are equal
        return (
            f"round {self.number}/{rounds}: reward {self.reward:+.3f}{parts}, KL {self.kl:.2f}, {self.length:.0f} tokens, "
            f"ended {self.terminated:.0%}{failed} | explained {explained}, clipped {self.clipped:.2f}, "
            f"grad {self.grad_norm:.2f}{mixed}, gap {self.gap:.0e} {self.value_gap:.0e} | s: {times} | "
            f"{self.cpu_per_reply:.3f} CPU-s a reply"
        )


@dataclass(frozen=True)
class Drawn:
    """What a round's rollouts say before anything is trained on them."""

    reward: float
    reward_deviation: float
    kl: float
    kl_per_token: float
    length: float
    terminated: float
    parts: dict[str, float]
    sources: dict[str, int]

    @classmethod
    def of(cls, rollout: Rollout, rewards: list[float]) -> Drawn:
        replies = rollout.replies
        kls = [float(kl_k1(reply.logprobs_T, reply.reference_T).sum()) for reply in replies]
        names = sorted({name for reply in replies for name in reply.parts})
        sources = [group.source for group in rollout.groups]
        return cls(
            reward=float(np.mean(rewards)),
            reward_deviation=deviation(rewards),
            kl=float(np.mean(kls)),
            kl_per_token=float(sum(kls) / sum(len(reply.token_ids) for reply in replies)),
            length=float(np.mean([len(reply.token_ids) for reply in replies])),
            terminated=float(np.mean([reply.is_terminated for reply in replies])),
            parts={name: float(np.mean([reply.parts[name] for reply in replies if name in reply.parts])) for name in names},
            sources={name: sources.count(name) for name in sorted(set(sources))},
        )


def round_report(
    number: int, version: int, drawn: Drawn, update: Update, seconds: Mapping[str, float], cpu_seconds: float, rollout: Rollout
) -> RoundReport:
    """All of one round."""
    return RoundReport(
        number=number,
        policy_version=version,
        **dataclasses.asdict(drawn),
        explained_variance=update.explained_variance,
        value_loss=float(np.mean(update.value_losses)),
        policy_loss=float(np.mean(update.policy_losses)),
        clipped=float(np.mean(update.clipped)),
        grad_norm=float(np.mean(update.grad_norms)),
        gap=update.gap,
        value_gap=update.value_gap,
        seconds={**seconds},
        cpu_seconds=cpu_seconds,
        num_replies=len(rollout.replies),
        num_failed=rollout.num_failed,
        pretraining_loss=float(np.mean(update.pretraining_losses)) if update.pretraining_losses else None,
    )
