"""Losses of the three RLHF systems, as pure functions of scores and log-probs. Knows no model, no optimiser and no data file.

Shapes: K replies of one prompt, R rows (tokens, or texts) of a batch. Each function returns a scalar tensor, a mean over what it says.
Sources: InstructGPT (Ouyang et al. 2022, arXiv 2203.02155), Sparrow (Glaese et al. 2022, arXiv 2209.14375), PPO (Schulman et al. 2017,
arXiv 1707.06347).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from polyhead.heads.training.labels import RuleLabel

# ---- preference heads


def ranking_loss(scores_K: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """-mean over pairs of log sigmoid(r_preferred - r_other): all pairs of one prompt are one element (InstructGPT, equation 1).

    `pairs` holds (preferred, other) indices into `scores_K`; ties are left out by the caller, for instance with `pairs_of_ranks`.
    """
    if not pairs:
        raise ValueError("a ranking loss needs at least one pair that is no tie")
    preferred, other = torch.tensor(pairs, device=scores_K.device).T
    return -logsigmoid(scores_K[preferred] - scores_K[other]).mean()


def pairs_of_ranks(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """All (preferred, other) pairs of K ranked replies, rank 1 the best. Equal ranks are a tie and give no pair (InstructGPT, C.2)."""
    return [(i, j) for i, first in enumerate(ranks) for j, second in enumerate(ranks) if first < second]


def choice_loss(
    scores_M: Tensor, chosen: int, off_topic: Tensor | None = None, bradley_terry_weight: float = 1.0, centring_weight: float = 0.01
) -> Tensor:
    """The shape of Sparrow's preference loss, for one reply chosen among M shown ones; its constants were not published.

    Cross-entropy of the choice over the shown scores and `off_topic`, the scores of replies to other prompts, plus `bradley_terry_weight` *
    mean over the shown others of -log sigmoid(r_chosen - r_other), plus `centring_weight` * mean of r^2, which keeps scores near 0.
    """
    if not 0 <= chosen < len(scores_M):
        raise ValueError(f"chosen must be an index into {len(scores_M)} scores: {chosen}")
    candidates = scores_M if off_topic is None else torch.cat([scores_M, off_topic])
    target = torch.tensor(chosen, device=scores_M.device)
    loss = cross_entropy(candidates[None], target[None]) + centring_weight * candidates.square().mean()
    if len(scores_M) > 1:
        others = torch.cat([scores_M[:chosen], scores_M[chosen + 1 :]])
        loss = loss - bradley_terry_weight * logsigmoid(scores_M[chosen] - others).mean()
    return loss


# ---- rule heads


def rule_loss(violated_logits_R: Tensor, followed_logits_R: Tensor, labels: Sequence[RuleLabel], broken_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy of p_violate = softmax over the two answer tokens' logits, unsure rows dropped.

    `broken_weight` multiplies the loss of broken rows. Any value but 1 shifts p_violate away from the share of broken texts, so that the
    head has to be calibrated again.
    """
    rows = [row for row, label in enumerate(labels) if label.target is not None]
    if not rows:
        raise ValueError("a rule loss needs at least one label that is not unsure")
    targets = violated_logits_R.new_tensor([labels[row].target for row in rows])
    margins = (violated_logits_R - followed_logits_R)[rows]
    return binary_cross_entropy_with_logits(margins, targets, pos_weight=margins.new_tensor(broken_weight))


# ---- reinforcement learning


def a2c_loss(logprobs_R: Tensor, advantages_R: Tensor) -> Tensor:
    """-mean of log-prob * advantage. On the tokens that the same version drew, this is the policy gradient (A2C, as Sparrow used it)."""
    return -(logprobs_R * advantages_R.detach()).mean()


def ppo_loss(logprobs_R: Tensor, drawn_logprobs_R: Tensor, advantages_R: Tensor, clip: float = 0.2) -> Tensor:
    """-mean of min(ratio * A, clipped ratio * A), ratio = exp(log-prob now - log-prob when drawn) (PPO, equation 7).

    `drawn_logprobs_R` must be those of the distribution that was sampled from, for each token those of the version that drew it.
    """
    ratio = (logprobs_R - drawn_logprobs_R.detach()).exp()
    advantages = advantages_R.detach()
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages).mean()


def clipped_share(logprobs_R: Tensor, drawn_logprobs_R: Tensor, clip: float = 0.2) -> float:
    """Share of tokens whose ratio lies outside [1 - clip, 1 + clip]."""
    ratio = (logprobs_R - drawn_logprobs_R).detach().exp()
    return float(((ratio - 1.0).abs() > clip).float().mean())


def value_loss(values_R: Tensor, returns_R: Tensor) -> Tensor:
    """Half the mean squared error against the returns."""
    return 0.5 * (values_R - returns_R.detach()).square().mean()


def pretraining_loss(logprobs_R: Tensor, weight: float = 27.8) -> Tensor:
    """-weight * mean log-prob of pretraining text, added to a PPO loss (PPO-ptx: InstructGPT, equation 2, and its weight)."""
    return -weight * logprobs_R.mean()


def token_logprobs(logits_RV: Tensor, token_ids: Tensor | Iterable[int]) -> Tensor:
    """(R,) float32 log-softmax of each row at its token: the raw log-prob at temperature 1, as the server counts it."""
    ids = token_ids if isinstance(token_ids, Tensor) else torch.tensor(list(token_ids))
    return logits_RV.float().log_softmax(-1).gather(-1, ids.to(logits_RV.device)[:, None])[:, 0]
