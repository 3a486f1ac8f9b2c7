"""The formulas of recipes against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polyhead.server.rewards import formulas
from polyhead.server.rewards.formulas import Aggregate, Estimator

FOLLOW = {"a": 0.5, "b": 0.25, "c": 1.0}


@pytest.mark.parametrize(
    ("how", "by_hand"),
    [
        (Aggregate.SUM, 1.75),
        (Aggregate.MEAN, 0.5833333333333334),
        (Aggregate.WEIGHTS, 2 * 0.5 - 4 * 0.25 + 0.5 * 1.0),
        (Aggregate.PRODUCT, 0.125),
    ],
)
def test_aggregates(how: Aggregate, by_hand: float) -> None:
    assert formulas.aggregate(how, FOLLOW, {"a": 2.0, "b": -4.0, "c": 0.5}) == pytest.approx(by_hand)


def test_a_sum_in_the_shape_of_sparrows_reward() -> None:
    """r + AGG - beta T - gamma N - eta (1 - valid) = 1.5 + 2 * 0.5 - 0.001 * 200 - 0.01 * 3 - 1 * 1 = 1.27."""
    parts = {"preference": 1.5, "rules": 0.5, "tokens": 200.0, "newlines": 3.0, "invalid": 1.0}
    coefficients = {"preference": 1.0, "rules": 2.0, "tokens": -0.001, "newlines": -0.01, "invalid": -1.0}
    assert formulas.linear(parts, coefficients) == pytest.approx(1.27)


def test_rerank_multiplies() -> None:
    """sigmoid(ln 3) = 3/4; 3/4 * (1/2 * 1/4) = 3/32; with alpha 2, 3/4 * 1/64 = 3/256; with alpha 0, 3/4."""
    for alpha, by_hand in ((1.0, 3 / 32), (2.0, 3 / 256), (0.0, 3 / 4)):
        assert math.exp(formulas.log_rerank(2.0 + math.log(3), 2.0, FOLLOW, alpha)) == pytest.approx(by_hand)
    assert math.exp(formulas.log_rerank(2.0 - math.log(3), 2.0, {"a": 1.0}, 1.0)) == pytest.approx(1 / 4)


def test_rerank_is_the_published_fraction() -> None:
    """R = e^r / (e^r + e^AVG) * prod f_i."""
    r, average = 0.7, -0.4
    fraction = math.exp(r) / (math.exp(r) + math.exp(average))
    assert math.exp(formulas.log_rerank(r, average, FOLLOW, 1.0)) == pytest.approx(fraction * 0.125)


def test_rerank_keeps_candidates_apart_that_underflow() -> None:
    """64 rules at 1e-10 multiply to 1e-640, which no float holds."""
    worse, better = ({f"r{index}": each for index in range(64)} for each in (1e-10, 2e-10))
    assert formulas.log_rerank(0.0, 0.0, worse, 1.0) < formulas.log_rerank(0.0, 0.0, better, 1.0) < -700
    assert formulas.log_rerank(-2000.0, 2000.0, {"a": 1.0}, 1.0) == -4000.0
    assert formulas.log_rerank(2000.0, -2000.0, {"a": 1.0}, 1.0) == 0.0
    assert formulas.log_rerank(0.0, 0.0, {"a": 0.0, "b": 1.0}, 1.0) == -math.inf
    assert formulas.log_rerank(0.0, 0.0, {"a": 0.0}, 0.0) == pytest.approx(math.log(0.5))


@pytest.mark.parametrize(
    ("estimator", "by_hand"),
    [
        (Estimator.K1, [math.log(2), -math.log(2), 0.0]),  # twice as likely as under the reference, half as likely, as likely
        (Estimator.K2, [0.2402265069591007, 0.2402265069591007, 0.0]),
        (Estimator.K3, [0.5 - 1 + math.log(2), 2 - 1 - math.log(2), 0.0]),
    ],
)
def test_kl_estimators(estimator: Estimator, by_hand: list[float]) -> None:
    logprobs, reference = np.log([0.5, 0.25, 0.125]), np.log([0.25, 0.5, 0.125])
    assert formulas.kl_per_token(estimator, logprobs, reference) == pytest.approx(by_hand)


@pytest.mark.parametrize("estimator", [Estimator.K1, Estimator.K3])
def test_k1_and_k3_have_the_kl_as_their_mean(estimator: Estimator) -> None:
    """Weighed with the policy's own probabilities, over a whole vocabulary."""
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
    kl = float((policy * np.log(policy / reference)).sum())
    assert (policy * formulas.kl_per_token(estimator, np.log(policy), np.log(reference))).sum() == pytest.approx(kl)


def test_token_rewards_add_up_to_the_reward_with_kl() -> None:
    """R_t = -0.5 * kl_t, plus 3 on the last token."""
    kl = np.array([1.0, -2.0, 4.0])
    assert formulas.token_rewards(3.0, 0.5, kl).tolist() == [-0.5, 1.0, 1.0]
    assert formulas.token_rewards(3.0, 0.5, kl).sum() == 3.0 - 0.5 * kl.sum()
    assert kl.tolist() == [1.0, -2.0, 4.0]


def test_the_best_come_first_ties_as_they_stand_and_none_last() -> None:
    assert formulas.best_first([1.0, math.nan, 3.0, 1.0, -math.inf, math.nan, 3.0]) == [2, 6, 0, 3, 4, 1, 5]
    assert [formulas.median_place(num) for num in (1, 2, 3, 4, 17)] == [0, 0, 1, 1, 8]
