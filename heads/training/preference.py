"""Training of a preference head on pairs: -log sigmoid(r_preferred - r_other), the Bradley-Terry loss (Ouyang et al. 2022, equation 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from polyhead.client import Client
from polyhead.heads.family import HeadModule, trainable_parameters
from polyhead.heads.training.packing import pack
from polyhead.heads.training.policy import Messages, encode_replies
from polyhead.heads.training.remote import pull_module


@dataclass(frozen=True)
class PreferenceTraining:
    """How a preference head is trained; the defaults suit a few dozen pairs."""

    epochs: int = 3
    batch_size: int = 8  # pairs
    learning_rate: float = 5e-5
    score_learning_rate: float = 1e-3  # of the new output, which starts at zero
    max_grad_norm: float = 1.0
    seed: int = 0


def train_preference(
    client: Client,
    pairs: Sequence[tuple[Messages, str, str]],
    start_from: str = "preference",
    training: PreferenceTraining = PreferenceTraining(),
    on_epoch: Callable[[int, float, float], None] = lambda epoch, loss, accuracy: None,
) -> HeadModule:
    """Train a copy of `start_from` on (messages, preferred, other) and return it. `on_epoch` gets mean loss and share ranked right."""
    preferred = encode_replies(client, [(messages, reply) for messages, reply, _ in pairs])
    other = encode_replies(client, [(messages, reply) for messages, _, reply in pairs])
    head = pull_module(client, start_from)
    optimizer = _optimizer(head, training)
    shuffle = torch.Generator().manual_seed(training.seed)
    for epoch in range(training.epochs):
        losses, num_right = [], 0
        for batch in torch.randperm(len(pairs), generator=shuffle).split(training.batch_size):
            packed = pack([texts[index] for texts in (preferred, other) for index in batch.tolist()])
            scores = head(packed.states_1TD, packed.positions_1T, packed.last_rows, attention_mask=packed.mask_11TT)
            margins = scores[: len(batch)] - scores[len(batch) :]
            loss = -logsigmoid(margins).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(trainable_parameters(head).values(), training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            num_right += int((margins > 0).sum())
        on_epoch(epoch, sum(losses) / len(losses), num_right / len(pairs))
    return head


def _optimizer(head: HeadModule, training: PreferenceTraining) -> torch.optim.Optimizer:
    named = trainable_parameters(head)
    layers = [parameter for name, parameter in named.items() if name != "score.weight"]
    return torch.optim.AdamW(
        [
            {"params": layers, "lr": training.learning_rate},
            {"params": [named["score.weight"]], "lr": training.score_learning_rate},
        ],
        weight_decay=0.0,
    )
