"""What an RL run is told. Defaults suit a small model and a few hundred prompts; sources are named where there is one."""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass
from typing import Any


class Algorithm(enum.Enum):
    """How the policy's loss is made of log-probs and advantages."""

    A2C = "a2c"  # log-prob * (return - V); Sparrow
    PPO = "ppo"  # clipped ratio * generalised advantage; Learning to summarize, InstructGPT


class KlEstimator(enum.Enum):
    """Of the KL divergence at one token: see returns.py."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


@dataclass(frozen=True)
class RLConfig:
    """Checked when made; raises ValueError naming the field."""

    algorithm: Algorithm = Algorithm.PPO
    rounds: int = 10  # of rollout, update, activation
    prompts: int = 12  # of one round
    samples: int = 4  # of each prompt
    max_new_tokens: int = 24
    temperature: float = 1.0  # InstructGPT
    epochs: int = 1  # passes over a round's replies; InstructGPT 1, Learning to summarize 4
    minibatches: int = 3  # optimiser steps of one pass, each on about as many tokens
    micro_batch_tokens: int = 1024  # most tokens of one forward pass
    learning_rate: float = 1e-4  # of the policy; suits a float32 server
    value_learning_rate: float = 1e-4
    value_output_rate: float = 1e-3  # of the value head's output, which starts at zero
    value_only_rounds: int = 0  # first rounds that train the value head alone
    discount: float = 1.0
    lam: float = 0.95  # of GAE; A2C takes plain returns, which is 1
    clip: float = 0.2  # of PPO's ratio
    kl_weight: float = 0.05  # a token, in the reward (Learning to summarize; InstructGPT 0.02)
    kl_estimator: KlEstimator = KlEstimator.K1
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    average_decay: float = 0.0  # of the policy's moving average (InstructGPT 0.992); 0: none is kept
    autocast: bool = False  # forward passes in bfloat16
    kl_limit: float = 0.35  # nats a token, mean of a round: above it the run goes back
    collapse: float = 2.0  # standard deviations of the first round's rewards below the best round: likewise
    most_rollbacks: int = 3  # each halves the learning rates; then the run ends
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "prompts", "samples", "max_new_tokens", "epochs", "minibatches", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: {getattr(self, name)}")
        rates = ("learning_rate", "value_learning_rate", "value_output_rate")
        for name in ("temperature", *rates, "clip", "max_grad_norm", "kl_limit", "collapse"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0: {getattr(self, name)}")
        for name in ("discount", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1]: {getattr(self, name)}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be in [0, 1): {self.average_decay}")
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be at least 0: {self.kl_weight}")

    @property
    def advantage_lam(self) -> float:
        """Lambda of the advantages: A2C's are return - V."""
        return 1.0 if self.algorithm is Algorithm.A2C else self.lam

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be resumed: all but its length."""
        plain = {name: value.value if isinstance(value, enum.Enum) else value for name, value in dataclasses.asdict(self).items()}
        return {**plain, "rounds": None, "betas": list(self.betas)}
