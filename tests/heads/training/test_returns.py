"""Advantages, returns and KL estimates against values worked out by hand, and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from polyhead.heads.training import returns


def test_the_reward_is_on_the_last_token_and_kl_on_each() -> None:
    assert returns.token_rewards([1.0, -2.0, 0.5], reward=3.0, kl_weight=0.1) == pytest.approx([-0.1, 0.2, 2.95])


def test_advantages_by_hand() -> None:
    """discount 0.9, lambda 0.5: deltas are 1 + 0.9*2 - 1 = 1.8, 0 + 0.9*3 - 2 = 0.7, 2 + 0.9*4 - 3 = 2.6."""
    found = returns.advantages([1.0, 0.0, 2.0], [1.0, 2.0, 3.0], bootstrap_value=4.0, discount=0.9, lam=0.5)
    last, middle = 2.6, 0.7 + 0.45 * 2.6
    assert found == pytest.approx([1.8 + 0.45 * middle, middle, last])


def test_lambda_one_is_return_minus_value_and_lambda_zero_is_one_step() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=7), rng.normal(size=7)
    whole = np.array([sum(0.8**j * r for j, r in enumerate(rewards[t:])) + 0.8 ** (7 - t) * 0.3 for t in range(7)])
    assert returns.advantages(rewards, values, 0.3, 0.8, lam=1.0) == pytest.approx(whole - values)
    one_step = rewards + 0.8 * np.append(values[1:], 0.3) - values
    assert returns.advantages(rewards, values, 0.3, 0.8, lam=0.0) == pytest.approx(one_step)


def test_whitening_is_over_all_tokens_of_a_batch() -> None:
    rows = returns.whitened([[1.0, 2.0], [3.0], [10.0, 4.0]])
    joined = np.concatenate(rows)
    assert [len(row) for row in rows] == [2, 1, 2]
    assert (joined.mean(), joined.std()) == (pytest.approx(0.0, abs=1e-12), pytest.approx(1.0, abs=1e-6))
    assert np.array_equal(returns.whitened([[2.0, 2.0]])[0], [0.0, 0.0])


def test_the_means_of_k1_and_k3_are_the_divergence() -> None:
    """Weighted by p over a small vocabulary, both are KL(p || q) to the last digit; k2 is near it."""
    rng = np.random.default_rng(1)
    p, q = (np.exp(x) / np.exp(x).sum() for x in rng.normal(scale=0.3, size=(2, 9)))
    divergence = float((p * np.log(p / q)).sum())
    assert float((p * returns.kl_k1(np.log(p), np.log(q))).sum()) == pytest.approx(divergence)
    assert float((p * returns.kl_k3(np.log(p), np.log(q))).sum()) == pytest.approx(divergence)
    assert float((p * returns.kl_k2(np.log(p), np.log(q))).sum()) == pytest.approx(divergence, rel=0.2)
    assert (returns.kl_k3(np.log(p), np.log(q)) >= 0).all()
    assert (returns.kl_k1(np.log(p), np.log(q)) < 0).any()


def test_explained_variance() -> None:
    found = [1.0, 2.0, 3.0]
    assert returns.explained_variance(found, found) == 1.0
    assert returns.explained_variance([2.0, 2.0, 2.0], found) == 0.0
    assert returns.explained_variance([3.0, 2.0, 1.0], found) == -3.0
    assert np.isnan(returns.explained_variance([0.0, 1.0], [5.0, 5.0]))


@pytest.mark.parametrize("values", [[], [[1.0]], 1.0])
def test_anything_but_a_row_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="values_T must be one row"):
        returns.advantages([1.0], values, 0.0)  # type: ignore[arg-type]


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length: 2 and 1"):
        returns.advantages([1.0, 2.0], [1.0], 0.0)
