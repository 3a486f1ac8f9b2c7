"""Supervised fine-tuning of a policy head: cross-entropy on replies, on boundary states fetched once from the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from polyhead.client import Client
from polyhead.heads.family import HeadModule, trainable_parameters
from polyhead.heads.training.packing import Packed, Text, pack
from polyhead.heads.training.remote import pull_module

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class PolicyTraining:
    """How a policy head is fine-tuned; the defaults suit a few dozen short replies."""

    epochs: int = 8
    batch_size: int = 8  # texts
    learning_rate: float = 2e-4
    max_grad_norm: float = 1.0
    seed: int = 0


def encode_replies(client: Client, examples: Sequence[tuple[Messages, str]]) -> list[Text]:
    """Prompt and reply as ids, the reply closed by the model's own end token, and what the trunk says about them: fetched once."""
    end = client.trunk().eos_token_ids[0]
    prompts = [client.tokenize(messages) for messages, _ in examples]
    replies = [[*client.tokenize(reply, special_tokens=False), end] for _, reply in examples]
    ids = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    states = client.encode(ids)
    return [Text(row, torch.from_numpy(state), len(prompt)) for row, state, prompt in zip(ids, states, prompts, strict=True)]


def train_policy(
    client: Client,
    examples: Sequence[tuple[Messages, str]],
    start_from: str = "policy",
    training: PolicyTraining = PolicyTraining(),
    embedding: nn.Parameter | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> HeadModule:
    """Fine-tune a copy of `start_from` on (messages, reply) pairs and return it; nothing is pushed. `on_epoch` gets the mean loss."""
    texts = encode_replies(client, examples)
    head = pull_module(client, start_from, embedding)
    optimizer = torch.optim.AdamW(trainable_parameters(head).values(), lr=training.learning_rate, weight_decay=0.0)
    shuffle = torch.Generator().manual_seed(training.seed)
    for epoch in range(training.epochs):
        losses = []
        for batch in torch.randperm(len(texts), generator=shuffle).split(training.batch_size):
            loss = reply_loss(head, pack([texts[index] for index in batch.tolist()]))
            loss.backward()
            nn.utils.clip_grad_norm_(trainable_parameters(head).values(), training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        on_epoch(epoch, sum(losses) / len(losses))
    return head


def reply_loss(head: HeadModule, packed: Packed) -> torch.Tensor:
    """Mean cross-entropy of the replies' tokens; the output projection runs on their rows alone."""
    logits = head(packed.states_1TD, packed.positions_1T, packed.next_token_rows, attention_mask=packed.mask_11TT)
    return cross_entropy(logits, packed.next_tokens)
