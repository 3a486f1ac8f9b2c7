"""Training of a value head on finished replies: at every token it learns the reply's reward, which is what is still to come without a
discount. A start for RL, whose own updates go on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from polyhead.client import Client
from polyhead.heads.model.family import HeadModule, trainable_parameters
from polyhead.heads.training.checkpoints import CheckpointFolder
from polyhead.heads.training.data import Rewarded
from polyhead.heads.training.fit import FitConfig, Step, become_average, fit
from polyhead.heads.training.losses import value_loss
from polyhead.heads.training.packing import Text, pack
from polyhead.heads.training.processes import Processes
from polyhead.heads.training.remote import pull_module
from polyhead.heads.training.returns import explained_variance
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.texts import Texts

FEW_REWARDS = FitConfig(epochs=2, batch_size=8, learning_rate=1e-4, learning_rates={"score.weight": 1e-3})  # the output starts at zero


@dataclass(frozen=True)
class Valued:
    """Replies with their rewards."""

    texts: list[Text]
    rewards: list[float]


def encode_rewarded(client: Client, rows: Sequence[Rewarded], states: StateStore) -> Valued:
    """The rows' ids, each reply closed by the model's own end token, and what the trunk says about them."""
    texts = Texts(client)
    pairs = [texts.pair(row.prompt, row.completion, row.place) for row in rows]
    ids = [prompt + reply for prompt, reply in pairs]
    encoded = [Text(row, state, len(prompt)) for row, state, (prompt, _) in zip(ids, states.states(ids), pairs, strict=True)]
    return Valued(encoded, [row.reward for row in rows])


def train_value(
    client: Client,
    rows: Sequence[Rewarded],
    states: StateStore,
    start_from: str = "value",
    config: FitConfig = FEW_REWARDS,
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> HeadModule:
    """Train a copy of `start_from` and return it; nothing is pushed."""
    with Processes.launched().main_first():
        valued = encode_rewarded(client, rows, states)
    head = pull_module(client, start_from)

    def loss(items: list[int]) -> torch.Tensor:
        return value_loss(*values_and_returns(head, valued, items))

    sizes, counts = [len(text.token_ids) for text in valued.texts], [text.num_trained for text in valued.texts]
    become_average(head, fit(trainable_parameters(head), sizes, loss, config, checkpoints, on_step, counts))
    return head


def values_and_returns(head: HeadModule, valued: Valued, items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(R,) values before each token of the items' replies, and their rewards."""
    texts = [valued.texts[item] for item in items]
    packed = pack(texts)
    values = head(packed.states_1TD, packed.positions_1T, packed.next_token_rows, attention_mask=packed.mask_11TT).float()
    counts = torch.tensor([text.num_trained for text in texts])
    return values, torch.repeat_interleave(torch.tensor([valued.rewards[item] for item in items]), counts)


@torch.no_grad()
def held_out_explained(head: HeadModule, valued: Valued) -> float:
    """Explained variance over all tokens; NaN if all rewards are equal."""
    rows = [values_and_returns(head, valued, [item]) for item in range(len(valued.texts))]
    return explained_variance(torch.cat([values for values, _ in rows]).numpy(), torch.cat([returns for _, returns in rows]).numpy())
