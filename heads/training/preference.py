"""Training of a preference head on ranked replies: all pairs of a prompt are one element, ties dropped (InstructGPT, equation 1), or
the best reply is told from the shown ones and from replies to other prompts (Sparrow).

A prompt's replies are one tree, so the prompt's part of the head is computed once for all of them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from polyhead.client import Client
from polyhead.heads.model.family import HeadModule, trainable_parameters
from polyhead.heads.training.checkpoints import CheckpointFolder
from polyhead.heads.training.data import Comparison, Completion, DataError, Demonstration
from polyhead.heads.training.fit import FitConfig, Fitted, Schedule, Step, become_average, fit
from polyhead.heads.training.losses import choice_loss, pairs_of_ranks, ranking_loss
from polyhead.heads.training.packing import Text, pack
from polyhead.heads.training.processes import Processes
from polyhead.heads.training.remote import pull_module
from polyhead.heads.training.state_store import States, StateStore
from polyhead.heads.training.texts import Texts
from polyhead.heads.training.tree import Run, pack_tree

FEW_PAIRS = FitConfig(
    epochs=3,
    batch_size=8,
    learning_rate=5e-5,
    learning_rates={"score.weight": 1e-3},  # the new output starts at zero
    schedule=Schedule.CONSTANT,
)  # suits a few dozen


OFF_TOPIC = 2  # replies to other prompts beside each row's own, for the choice loss; how many Sparrow took was not published


class PreferenceLoss(enum.Enum):
    """What a head learns from a row."""

    RANKING = "ranking"  # every pair of its replies, ties left out
    CHOICE = "choice"  # its best reply among all of them and among off-topic ones


@dataclass(frozen=True)
class Ranked:
    """One prompt's ranked replies with their boundary states: run 0 is the prompt, run i + 1 reply i, off-topic ones behind them."""

    runs: list[Run]
    ranks: tuple[int, ...]  # of its own replies

    @property
    def num_tokens(self) -> int:
        return sum(len(run.token_ids) for run in self.runs)


def encode_ranked(client: Client, rows: Sequence[Comparison], states: StateStore, num_off_topic: int = 0, seed: int = 0) -> list[Ranked]:
    """The rows' ids, each reply closed by the model's own end token, and what the trunk says about them.

    `num_off_topic` replies to other prompts are added to each row, drawn by `seed`. Raises DataError if all prompts are equal.
    """
    texts = Texts(client)
    drawn = _off_topic(rows, num_off_topic, seed) if num_off_topic else [[] for _ in rows]
    found = []
    for row, others in zip(rows, drawn, strict=True):
        replies = [texts.pair(row.prompt, reply, row.place)[1] for reply in (*row.replies, *others)]
        found.append(ranked(texts.prompt(row.prompt), replies, row.ranks, states))
    return found


def ranked(prompt: list[int], replies: Sequence[list[int]], ranks: Sequence[int], states: States) -> Ranked:
    """One row by its ids; `ranks` are of the first replies, others are off-topic ones."""
    whole = states.states([prompt + reply for reply in replies])
    runs = [Run(reply, state[len(prompt) :], parent=0) for reply, state in zip(replies, whole, strict=True)]
    return Ranked([Run(prompt, whole[0][: len(prompt)]), *runs], tuple(ranks))


def _off_topic(rows: Sequence[Comparison], count: int, seed: int) -> list[list[Completion]]:
    """For each row `count` replies of rows with another prompt; fewer if there are no more."""
    generator, found = torch.Generator().manual_seed(seed), []
    for row in rows:
        others = [reply for other in rows if other.prompt != row.prompt for reply in other.replies]
        if not others:
            raise DataError("off-topic replies are those to other prompts, and all rows have the same prompt")
        found.append([others[index] for index in torch.randperm(len(others), generator=generator)[:count].tolist()])
    return found


def train_preference(
    client: Client,
    rows: Sequence[Comparison],
    states: StateStore,
    start_from: str = "preference",
    config: FitConfig = FEW_PAIRS,
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    loss: PreferenceLoss = PreferenceLoss.RANKING,
    num_off_topic: int = OFF_TOPIC,
) -> HeadModule:
    """Train a copy of `start_from` on ranked replies and return it; nothing is pushed. `num_off_topic` is of the choice loss."""
    is_choice = loss is PreferenceLoss.CHOICE
    with Processes.launched().main_first():
        encoded = encode_ranked(client, _with_one_best(rows) if is_choice else rows, states, num_off_topic * is_choice, config.seed)
    head = pull_module(client, start_from)
    become_average(head, fit_ranked(head, trainable_parameters(head), encoded, config, checkpoints, on_step, loss))
    return head


def fit_ranked(
    head: HeadModule,
    parameters: Mapping[str, nn.Parameter],
    rows: Sequence[Ranked],
    config: FitConfig,
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    loss: PreferenceLoss = PreferenceLoss.RANKING,
) -> Fitted:
    """Train `parameters` of `head` in place: all of its own, or those of an adapter beside it."""

    def loss_of(items: list[int]) -> torch.Tensor:
        chosen = [rows[item] for item in items]
        return torch.stack([_loss(each, row.ranks, loss) for each, row in zip(scores(head, chosen), chosen, strict=True)]).mean()

    return fit(parameters, [row.num_tokens for row in rows], loss_of, config, checkpoints, on_step)


def _with_one_best(rows: Sequence[Comparison]) -> list[Comparison]:
    found = [row for row in rows if row.ranks.count(min(row.ranks)) == 1]
    if not found:
        raise DataError("every row has several best replies: a choice needs one")
    return found


def _loss(scores_N: torch.Tensor, ranks: Sequence[int], loss: PreferenceLoss) -> torch.Tensor:
    """Of one row's replies; the scores behind those of its own are of off-topic ones."""
    if loss is PreferenceLoss.RANKING:
        return ranking_loss(scores_N, pairs_of_ranks(ranks))
    return choice_loss(scores_N[: len(ranks)], ranks.index(min(ranks)), scores_N[len(ranks) :])


def scores(head: HeadModule, rows: Sequence[Ranked]) -> list[torch.Tensor]:
    """(K,) raw scores of each row's replies, read at their last tokens; those of its off-topic ones behind them."""
    runs: list[Run] = []
    firsts = []
    for row in rows:
        firsts.append(len(runs))
        runs += [Run(run.token_ids, run.states, None if run.parent is None else run.parent + firsts[-1]) for run in row.runs]
    tree = pack_tree(runs)
    last = [tree.last_row(first + 1 + reply) for first, row in zip(firsts, rows, strict=True) for reply in range(len(row.runs) - 1)]
    flat = head(tree.states_1TD, tree.positions_1T, torch.tensor(last), attention_mask=tree.mask_11TT)
    return list(flat.split([len(row.runs) - 1 for row in rows]))


@torch.no_grad()
def held_out_margins(head: HeadModule, rows: Sequence[Ranked]) -> list[list[float]]:
    """For each row the score of the preferred reply minus the other's, for each of its pairs."""
    found = []
    for row in rows:
        [values] = scores(head, [row])
        found.append([float(values[i] - values[j]) for i, j in pairs_of_ranks(row.ranks)])
    return found


def best_replies(rows: Sequence[Comparison]) -> list[Demonstration]:
    """The preferred reply of each row; the first of several."""
    return [Demonstration(row.prompt, row.replies[row.ranks.index(min(row.ranks))], row.place) for row in rows]


@torch.no_grad()
def reference_scores(head: HeadModule, texts: Sequence[Text]) -> list[float]:
    """The raw score of each text, read at its last token. Their mean is the bias that gives them 0 on average (InstructGPT 3.5)."""
    found = []
    for packed in (pack([text]) for text in texts):
        found.append(float(head(packed.states_1TD, packed.positions_1T, packed.last_rows, attention_mask=packed.mask_11TT)[0]))
    return found
