"""Losses against values worked out by hand, or by another road."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polyhead.heads.training import losses
from polyhead.heads.training.labels import RuleLabel


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_ranking_counts_each_pair_of_a_prompt_once() -> None:
    scores = torch.tensor([2.0, 0.5, -1.0])
    pairs = losses.pairs_of_ranks([1, 2, 3])
    assert sorted(pairs) == [(0, 1), (0, 2), (1, 2)]
    by_hand = -(log_sigmoid(1.5) + log_sigmoid(3.0) + log_sigmoid(1.5)) / 3
    assert losses.ranking_loss(scores, pairs).item() == pytest.approx(by_hand, abs=1e-6)


def test_ties_give_no_pair() -> None:
    assert losses.pairs_of_ranks([1, 1, 2]) == [(0, 2), (1, 2)]
    assert losses.pairs_of_ranks([3, 3]) == []
    with pytest.raises(ValueError, match="at least one pair"):
        losses.ranking_loss(torch.zeros(2), [])


def test_ranking_does_not_see_a_shift() -> None:
    scores = torch.tensor([0.3, -0.2, 1.0])
    pairs = losses.pairs_of_ranks([2, 3, 1])
    torch.testing.assert_close(losses.ranking_loss(scores, pairs), losses.ranking_loss(scores + 5.0, pairs))


def test_a_choice_among_shown_and_off_topic_replies() -> None:
    shown, off_topic = torch.tensor([1.0, 0.0]), torch.tensor([-2.0])
    total = math.exp(1.0) + math.exp(0.0) + math.exp(-2.0)
    choice = -(1.0 - math.log(total))
    by_hand = choice - 0.5 * log_sigmoid(1.0) + 0.1 * (1.0 + 0.0 + 4.0) / 3
    found = losses.choice_loss(shown, 0, off_topic, bradley_terry_weight=0.5, centring_weight=0.1)
    assert found.item() == pytest.approx(by_hand, abs=1e-6)


def test_an_off_topic_reply_is_pushed_down() -> None:
    shown, off_topic = torch.zeros(2), torch.zeros(3, requires_grad=True)
    losses.choice_loss(shown, 1, off_topic, centring_weight=0.0).backward()
    assert off_topic.grad is not None
    assert bool((off_topic.grad > 0).all())


def test_a_choice_outside_the_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="index into 2 scores: 2"):
        losses.choice_loss(torch.zeros(2), 2)


def test_five_rule_labels_become_two_and_unsure_is_dropped() -> None:
    violated, followed = torch.tensor([0.5, 9.0, -1.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 0.5, 1.0, 3.0])
    labels = [
        RuleLabel.DEFINITELY_BROKEN,
        RuleLabel.UNSURE,
        RuleLabel.PROBABLY_FOLLOWED,
        RuleLabel.PROBABLY_BROKEN,
        RuleLabel.DEFINITELY_FOLLOWED,
    ]
    by_hand = -(log_sigmoid(0.5) + log_sigmoid(1.5) + log_sigmoid(1.0) + log_sigmoid(3.0)) / 4
    assert losses.rule_loss(violated, followed, labels).item() == pytest.approx(by_hand, abs=1e-6)
    weighted = -(3 * log_sigmoid(0.5) + log_sigmoid(1.5) + 3 * log_sigmoid(1.0) + log_sigmoid(3.0)) / 4
    assert losses.rule_loss(violated, followed, labels, broken_weight=3.0).item() == pytest.approx(weighted, abs=1e-6)
    with pytest.raises(ValueError, match="not unsure"):
        losses.rule_loss(violated[:1], followed[:1], [RuleLabel.UNSURE])


def gradient(loss: Tensor, of: Tensor) -> list[float]:
    [found] = torch.autograd.grad(loss, of)
    return [round(value, 6) for value in found.tolist()]


def test_a2c_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    assert gradient(losses.a2c_loss(logprobs, torch.tensor([3.0, -1.0])), logprobs) == [-1.5, 0.5]


def test_ppo_at_the_drawing_version_is_a2c() -> None:
    logprobs, good = torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([3.0, -1.0])
    assert gradient(losses.ppo_loss(logprobs, logprobs.detach(), good), logprobs) == gradient(losses.a2c_loss(logprobs, good), logprobs)


def test_ppo_clips_only_what_goes_too_far_in_the_good_direction() -> None:
    """Ratios 1.5, 0.5, 1.5, 0.5 with advantages +, +, -, -: the first and the last are clipped and give no gradient."""
    drawn = torch.zeros(4)
    logprobs = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    good = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = losses.ppo_loss(logprobs, drawn, good)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8) / 4, abs=1e-6)
    assert gradient(loss, logprobs) == [0.0, -0.125, 0.375, 0.0]
    assert losses.clipped_share(logprobs, drawn) == 1.0
    assert losses.clipped_share(drawn, drawn) == 0.0


def test_value_and_pretraining_losses() -> None:
    assert losses.value_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(0.5 * (1 + 4) / 2)
    assert losses.pretraining_loss(torch.tensor([-1.0, -3.0]), weight=2.0).item() == pytest.approx(4.0)


def test_token_logprobs_are_float32_log_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.bfloat16)
    found = losses.token_logprobs(logits, [2, 0])
    assert found.dtype is torch.float32
    totals = [1 + math.e + math.exp(2), math.exp(3) + 2]
    assert found.tolist() == pytest.approx([2 - math.log(totals[0]), 3 - math.log(totals[1])], abs=1e-6)
