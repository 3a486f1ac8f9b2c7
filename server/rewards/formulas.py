"""The formulas of reward recipes, on plain numbers. Knows no heads, files or messages.

f_i = 1 - p_violate of rule i: the probability that it was followed. Sparrow's two combinations are reconstructions.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Aggregate(enum.Enum):
    """How the rules' f_i become one number."""

    SUM = "sum"
    MEAN = "mean"
    WEIGHTS = "weights"  # sum of weight_i * f_i
    PRODUCT = "product"


class Estimator(enum.Enum):
    """What stands for KL(policy || reference) at one sampled token; named by John Schulman, "Approximating KL Divergence" (2020).

    With k1 = log-prob - reference log-prob. k1 and k3 have the KL as their mean; k2's is biased, with little variance.
    """

    K1 = "k1"  # k1: negative for some tokens
    K2 = "k2"  # k1^2 / 2
    K3 = "k3"  # exp(-k1) - 1 + k1: never negative


def aggregate(how: Aggregate, follow: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """One number for f_i by rule id. `weights` are read for WEIGHTS alone."""
    match how:
        case Aggregate.SUM:
            return math.fsum(follow.values())
        case Aggregate.MEAN:
            return math.fsum(follow.values()) / len(follow)
        case Aggregate.WEIGHTS:
            return math.fsum(weights[rule_id] * value for rule_id, value in follow.items())
        case Aggregate.PRODUCT:
            return math.prod(follow.values())


def linear(parts: Mapping[str, float], coefficients: Mapping[str, float]) -> float:
    """Sum of coefficient * part. Sparrow's RL reward: r + AGG_i f_i - beta * T - gamma * N - eta * (1 - valid)."""
    return math.fsum(coefficient * parts[name] for name, coefficient in coefficients.items())


def log_rerank(preference: float, average: float, follow: Mapping[str, float], alpha: float) -> float:
    """log R = log sigmoid(r - average) + alpha * sum_i log f_i, for Sparrow's rerank score R. alpha >= 0.

    The log keeps candidates apart whose R underflows; -inf if a rule is broken for certain.
    """
    log_follow = math.fsum(math.log(value) for value in follow.values()) if min(follow.values()) > 0 else -math.inf
    return _log_sigmoid(preference - average) + (alpha * log_follow if alpha else 0.0)


def kl_per_token(estimator: Estimator, logprobs: Floats, reference: Floats) -> Floats:
    """(tokens,) from the raw log-probs of the sampled tokens, (tokens,) each."""
    k1 = logprobs - reference
    match estimator:
        case Estimator.K1:
            return k1
        case Estimator.K2:
            return k1**2 / 2
        case Estimator.K3:
            with np.errstate(over="ignore"):  # the caller looks for what is not finite
                return np.expm1(-k1) + k1


def token_rewards(reward: float, coefficient: float, kl: Floats) -> Floats:
    """(tokens,): the penalty at each token, and the reward on the last one. Their sum is `reward_with_kl`."""
    rewards = -coefficient * kl
    rewards[-1] += reward
    return rewards


def best_first(keys: Sequence[float]) -> list[int]:
    """Indices by descending key. Equal ones keep their order; NaN, which means none, comes last."""
    ranked = [index for index, key in enumerate(keys) if not math.isnan(key)]
    without = [index for index, key in enumerate(keys) if math.isnan(key)]
    return sorted(ranked, key=lambda index: -keys[index]) + without


def median_place(num: int) -> int:
    """Where the median stands in a ranking of `num`, from 0."""
    return (num - 1) // 2


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))
