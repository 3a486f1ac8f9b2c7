"""Training of a preference head on ranked replies: all pairs of a prompt are one element, ties dropped (InstructGPT, equation 1).

A prompt's replies are one tree, so the prompt's part of the head is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from polyhead.client import Client
from polyhead.heads.model.family import HeadModule, trainable_parameters
from polyhead.heads.training.checkpoints import CheckpointFolder
from polyhead.heads.training.data import Comparison
from polyhead.heads.training.fit import FitConfig, Schedule, Step, become_average, fit
from polyhead.heads.training.losses import pairs_of_ranks, ranking_loss
from polyhead.heads.training.remote import pull_module
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.texts import Texts
from polyhead.heads.training.tree import Run, pack_tree

FEW_PAIRS = FitConfig(
    epochs=3,
    batch_size=8,
    learning_rate=5e-5,
    learning_rates={"score.weight": 1e-3},  # the new output starts at zero
    schedule=Schedule.CONSTANT,
)  # suits a few dozen


@dataclass(frozen=True)
class Ranked:
    """One prompt's ranked replies with their boundary states: run 0 is the prompt, run i + 1 reply i."""

    runs: list[Run]
    ranks: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(run.token_ids) for run in self.runs)


def encode_ranked(client: Client, rows: Sequence[Comparison], states: StateStore) -> list[Ranked]:
    """The rows' ids, each reply closed by the model's own end token, and what the trunk says about them."""
    texts = Texts(client)
    found = []
    for row in rows:
        prompt = texts.prompt(row.prompt)
        replies = [texts.reply(reply) for reply in row.replies]
        whole = states.states([prompt + reply for reply in replies])
        runs = [Run(reply, state[len(prompt) :], parent=0) for reply, state in zip(replies, whole, strict=True)]
        found.append(Ranked([Run(prompt, whole[0][: len(prompt)]), *runs], row.ranks))
    return found


def train_preference(
    client: Client,
    rows: Sequence[Comparison],
    states: StateStore,
    start_from: str = "preference",
    config: FitConfig = FEW_PAIRS,
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> HeadModule:
    """Train a copy of `start_from` on ranked replies and return it; nothing is pushed."""
    ranked = encode_ranked(client, rows, states)
    head = pull_module(client, start_from)

    def loss(items: list[int]) -> torch.Tensor:
        chosen = [ranked[item] for item in items]
        losses = [ranking_loss(each, pairs_of_ranks(row.ranks)) for each, row in zip(scores(head, chosen), chosen, strict=True)]
        return torch.stack(losses).mean()

    become_average(head, fit(trainable_parameters(head), [row.num_tokens for row in ranked], loss, config, checkpoints, on_step))
    return head


def scores(head: HeadModule, rows: Sequence[Ranked]) -> list[torch.Tensor]:
    """(K,) raw scores of each row's replies, read at their last tokens."""
    runs: list[Run] = []
    firsts = []
    for row in rows:
        firsts.append(len(runs))
        runs += [Run(run.token_ids, run.states, None if run.parent is None else run.parent + firsts[-1]) for run in row.runs]
    tree = pack_tree(runs)
    last = [tree.last_row(first + 1 + reply) for first, row in zip(firsts, rows, strict=True) for reply in range(len(row.ranks))]
    flat = head(tree.states_1TD, tree.positions_1T, torch.tensor(last), attention_mask=tree.mask_11TT)
    return list(flat.split([len(row.ranks) for row in rows]))


@torch.no_grad()
def held_out_margins(head: HeadModule, rows: Sequence[Ranked]) -> list[list[float]]:
    """For each row the score of the preferred reply minus the other's, for each of its pairs."""
    found = []
    for row in rows:
        [values] = scores(head, [row])
        found.append([float(values[i] - values[j]) for i, j in pairs_of_ranks(row.ranks)])
    return found
