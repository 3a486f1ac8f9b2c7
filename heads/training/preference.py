"""Training of a preference head on pairs: -log sigmoid(r_preferred - r_other), the Bradley-Terry loss (Ouyang et al. 2022, equation 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import logsigmoid

from polyhead.client import Client
from polyhead.heads.family import HeadModule, trainable_parameters
from polyhead.heads.training.fit import FitConfig, Schedule, Step, fit
from polyhead.heads.training.packing import Text, pack
from polyhead.heads.training.policy import Messages, encode_replies
from polyhead.heads.training.remote import pull_module

FEW_PAIRS = FitConfig(
    epochs=3,
    batch_size=8,
    learning_rate=5e-5,
    learning_rates={"score.weight": 1e-3},  # the new output starts at zero
    schedule=Schedule.CONSTANT,
)  # suits a few dozen


def train_preference(
    client: Client,
    pairs: Sequence[tuple[Messages, str, str]],
    start_from: str = "preference",
    config: FitConfig = FEW_PAIRS,
    on_step: Callable[[Step], None] = lambda step: None,
) -> HeadModule:
    """Train a copy of `start_from` on (messages, preferred, other) and return it; nothing is pushed."""
    preferred = encode_replies(client, [(messages, reply) for messages, reply, _ in pairs])
    other = encode_replies(client, [(messages, reply) for messages, _, reply in pairs])
    head = pull_module(client, start_from)

    def loss(items: list[int]) -> torch.Tensor:
        return -logsigmoid(margins(head, [preferred[item] for item in items], [other[item] for item in items])).mean()

    sizes = [len(first.token_ids) + len(second.token_ids) for first, second in zip(preferred, other, strict=True)]
    fit(trainable_parameters(head), sizes, loss, config, on_step=on_step)
    return head


def margins(head: HeadModule, preferred: Sequence[Text], other: Sequence[Text]) -> torch.Tensor:
    """(pairs,) score of the preferred reply minus the other's, each read at its last token."""
    packed = pack([*preferred, *other])
    scores: torch.Tensor = head(packed.states_1TD, packed.positions_1T, packed.last_rows, attention_mask=packed.mask_11TT)
    return scores[: len(preferred)] - scores[len(preferred) :]
