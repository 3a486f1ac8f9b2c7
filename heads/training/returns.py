"""From a rollout's rewards to advantages and returns, and estimates of the KL divergence. Plain numbers: no model, no gradient.

T tokens of one reply. `values[t]` is V before token t, as the server returns it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def token_rewards(kl_T: ArrayLike, reward: float, kl_weight: float) -> Floats:
    """(T,) -kl_weight * KL at each token, and the reply's reward on its last token (Stiennon et al. 2020; InstructGPT, equation 2).

    Leave KL out of either the recipe or this call: `reward` must be the part without KL.
    """
    rewards = -kl_weight * _row(kl_T, "kl_T")
    rewards[-1] += reward
    return rewards


def advantages(rewards_T: ArrayLike, values_T: ArrayLike, bootstrap_value: float, discount: float = 1.0, lam: float = 0.95) -> Floats:
    """(T,) Generalised advantage estimates: A_t = sum_j (discount*lam)^j delta_(t+j) (Schulman et al. 2015, arXiv 1506.02438, equation 16).

    delta_t = R_t + discount * V_(t+1) - V_t, and V behind the last token is `bootstrap_value`: 0 where a reply is one whole episode, also
    if it ended by its length. With a reward on the last token, a bootstrap value would count what follows a second time.
    """
    rewards, values = _row(rewards_T, "rewards_T"), _row(values_T, "values_T")
    if len(rewards) != len(values):
        raise ValueError(f"rewards and values differ in length: {len(rewards)} and {len(values)}")
    deltas = rewards + discount * np.append(values[1:], bootstrap_value) - values
    found, running = np.empty_like(deltas), 0.0
    for t in range(len(deltas) - 1, -1, -1):
        running = deltas[t] + discount * lam * running
        found[t] = running
    return found


def whitened(rows: Sequence[ArrayLike], epsilon: float = 1e-8) -> list[Floats]:
    """Advantages of a batch of replies, shifted and scaled so that all tokens together have mean 0 and standard deviation 1."""
    joined = np.concatenate([_row(row, "rows") for row in rows])
    mean, deviation = joined.mean(), joined.std()
    return [(_row(row, "rows") - mean) / (deviation + epsilon) for row in rows]


# ---- KL(policy || reference), from log-probs of tokens that the policy drew (k1, k2, k3: Schulman 2020, "Approximating KL divergence")


def kl_k1(logprobs_T: ArrayLike, reference_T: ArrayLike) -> Floats:
    """(T,) log p - log q: its mean is unbiased, single tokens may be negative. The server's `kl` is this one."""
    return _row(logprobs_T, "logprobs_T") - _row(reference_T, "reference_T")


def kl_k2(logprobs_T: ArrayLike, reference_T: ArrayLike) -> Floats:
    """(T,) (log p - log q)^2 / 2: never negative, little variance, biased."""
    return 0.5 * np.square(kl_k1(logprobs_T, reference_T))


def kl_k3(logprobs_T: ArrayLike, reference_T: ArrayLike) -> Floats:
    """(T,) q/p - 1 - log(q/p): never negative, and its mean is unbiased."""
    log_ratio = -kl_k1(logprobs_T, reference_T)
    return np.expm1(log_ratio) - log_ratio


def explained_variance(values: ArrayLike, returns: ArrayLike) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than their mean. NaN if all returns are equal."""
    predicted, found = _row(values, "values"), _row(returns, "returns")
    variance = deviation(found) ** 2
    return float("nan") if variance == 0.0 else float(1.0 - (found - predicted).var() / variance)


def deviation(values: ArrayLike) -> float:
    """Standard deviation; exactly 0 where all numbers are equal, of which rounding would else make about 1e-17."""
    row = _row(values, "values")
    return float(row.std()) if row.min() < row.max() else 0.0


def _row(values: ArrayLike, name: str) -> Floats:
    row = np.array(values, dtype=np.float64)
    if row.ndim != 1 or not row.size:
        raise ValueError(f"{name} must be one row with at least one number: shape {row.shape}")
    return row
