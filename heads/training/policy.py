"""Supervised fine-tuning of a policy head: cross-entropy on replies, on boundary states fetched once from the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from polyhead.client import Client
from polyhead.heads.model.family import HeadModule, trainable_parameters
from polyhead.heads.training.checkpoints import CheckpointFolder
from polyhead.heads.training.data import Demonstration
from polyhead.heads.training.fit import FitConfig, Schedule, Step, become_average, fit
from polyhead.heads.training.packing import Packed, Text, pack
from polyhead.heads.training.processes import Processes
from polyhead.heads.training.remote import pull_module
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.texts import Texts

FEW_REPLIES = FitConfig(epochs=8, batch_size=8, learning_rate=2e-4, schedule=Schedule.CONSTANT)  # suits a few dozen short ones


def encode_replies(client: Client, examples: Sequence[Demonstration], states: StateStore) -> list[Text]:
    """Prompt and reply as ids, the reply closed by the model's own end token, and what the trunk says about them."""
    texts = Texts(client)
    pairs = [texts.pair(example.prompt, example.completion, example.place) for example in examples]
    ids = [prompt + reply for prompt, reply in pairs]
    return [Text(row, state, len(prompt)) for row, state, (prompt, _) in zip(ids, states.states(ids), pairs, strict=True)]


def train_policy(
    client: Client,
    examples: Sequence[Demonstration],
    states: StateStore,
    start_from: str = "policy",
    config: FitConfig = FEW_REPLIES,
    embedding: nn.Parameter | None = None,
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> HeadModule:
    """Fine-tune a copy of `start_from` on demonstrations and return it; nothing is pushed."""
    with Processes.launched().main_first():
        texts = encode_replies(client, examples, states)
    head = pull_module(client, start_from, embedding)

    def loss(items: list[int]) -> torch.Tensor:
        return reply_loss(head, pack([texts[item] for item in items]))

    sizes, counts = [len(text.token_ids) for text in texts], [text.num_trained for text in texts]
    become_average(head, fit(trainable_parameters(head), sizes, loss, config, checkpoints, on_step, counts))
    return head


def reply_loss(head: HeadModule, packed: Packed) -> torch.Tensor:
    """Mean cross-entropy of the replies' tokens; the output projection runs on their rows alone."""
    logits = head(packed.states_1TD, packed.positions_1T, packed.next_token_rows, attention_mask=packed.mask_11TT)
    return cross_entropy(logits, packed.next_tokens)


@torch.no_grad()
def held_out_loss(head: HeadModule, texts: Sequence[Text]) -> float:
    """Mean cross-entropy of a token of the replies, in nats."""
    total = sum(float(reply_loss(head, pack([text]))) * text.num_trained for text in texts)
    return total / sum(text.num_trained for text in texts)
