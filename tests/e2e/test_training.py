"""The trainers' ground on a real server: states are fetched once, a trainer's head equals the served one, and holds no trunk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from polyhead.client import Client
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import HeadModule, trainable_parameters
from polyhead.heads.training.fit import FitConfig, fit
from polyhead.heads.training.losses import pairs_of_ranks, ranking_loss, token_logprobs
from polyhead.heads.training.remote import pull_module, weights_of
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.tree import Run, pack_tree
from polyhead.heads.training.verify import verify
from tests.e2e.support import serving

PROMPT, REPLIES = [1, 70, 71, 72], [[80, 81, 82], [90, 91], [100, 101, 102, 103]]
ITEMS = [(PROMPT, reply) for reply in REPLIES]


@pytest.fixture(scope="module")
def client(tied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(tied_model, tmp_path_factory.mktemp("training") / "store") as server, Client(server.address, timeout=60) as opened:
        yield opened


def fetched(client: Client, states: StateStore) -> list[Run]:
    rows = states.states([PROMPT + reply for reply in REPLIES])
    return [Run(PROMPT, rows[0][:4]), *(Run(reply, row[4:], parent=0) for reply, row in zip(REPLIES, rows, strict=True))]


def test_a_trained_preference_head_is_the_one_that_serves(client: Client, tmp_path: Path) -> None:
    """Three replies ranked 2, 3, 1; after training and a push the server ranks them so, with the trainer's numbers."""
    states = StateStore(client, tmp_path)
    tree = pack_tree(fetched(client, states))
    head = pull_module(client, "preference")
    pairs, last = pairs_of_ranks([2, 3, 1]), torch.tensor([tree.last_row(run) for run in (1, 2, 3)])

    def loss(items: list[int]) -> torch.Tensor:
        return ranking_loss(head(tree.states_1TD, tree.positions_1T, last, attention_mask=tree.mask_11TT), pairs)

    fit(trainable_parameters(head), [1], loss, FitConfig(epochs=20, learning_rate=1e-3, learning_rates={"score.weight": 1e-2}))
    pushed = client.push("preference-trained", weights_of(head), kind="preference")
    reference = f"preference-trained@{pushed.version}"
    assert verify(client, head, reference, ITEMS, states) < 1e-5
    scores = [item.scores[reference].value for item in client.score(ITEMS, heads=[reference])]
    assert scores[2] > scores[0] > scores[1]
    assert states.num_computed == sum(len(PROMPT) + len(reply) for reply in REPLIES)  # twenty epochs and verify asked for nothing more


@pytest.mark.parametrize("reference", ["policy", "value"])
def test_a_pulled_head_equals_the_served_one(client: Client, tmp_path: Path, reference: str) -> None:
    assert verify(client, pull_module(client, reference), reference, ITEMS, StateStore(client, tmp_path)) < 1e-5


def test_another_version_shows_as_a_gap(client: Client, tmp_path: Path) -> None:
    head = pull_module(client, "policy")
    with torch.no_grad():
        trainable_parameters(head)["model.norm.weight"].mul_(1.5)
    assert verify(client, head, "policy", ITEMS, StateStore(client, tmp_path)) > 1e-3


def test_no_items_are_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no items"):
        verify(client, pull_module(client, "policy"), "policy", [], StateStore(client, tmp_path))


def test_gradients_on_fetched_states_equal_the_unsplit_models(client: Client, tied_model: Path, tmp_path: Path) -> None:
    """Replies of one prompt as a tree on the server's states, against the whole model with its lower layers frozen."""
    from transformers import AutoModelForCausalLM

    tree = pack_tree(fetched(client, StateStore(client, tmp_path)))
    head = pull_module(client, "policy")
    rows = [row for run in (1, 2, 3) for row in tree.predicting_rows(run)]
    logits = head(tree.states_1TD, tree.positions_1T, torch.tensor(rows), attention_mask=tree.mask_11TT)
    (-token_logprobs(logits, [token for reply in REPLIES for token in reply]).sum()).backward()
    whole = AutoModelForCausalLM.from_pretrained(tied_model, dtype=torch.float32, attn_implementation="sdpa")
    whole.requires_grad_(False)
    named = dict(whole.named_parameters())
    ours = trainable_parameters(head)
    for name in ours:
        named[name].requires_grad_(True)
    for reply in REPLIES:
        logits = whole(torch.tensor([PROMPT + reply]), use_cache=False).logits[0]
        (-token_logprobs(logits[len(PROMPT) - 1 : -1], reply).sum()).backward()
    for name, parameter in ours.items():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, named[name].grad, atol=1e-5, rtol=1e-4)


def test_a_trainers_parameters_are_the_heads_only(client: Client, tied_model: Path) -> None:
    """No tensor below the split: what it holds beyond its head is a tied policy's frozen output matrix."""
    heads: dict[str, HeadModule] = {name: pull_module(client, name) for name in ("policy", "preference", "value")}
    checkpoint = Checkpoint.open(tied_model)
    whole = sum(checkpoint.info(name).num_bytes for name in checkpoint.tensors)
    for name, head in heads.items():
        own = trainable_parameters(head)
        assert all(each.startswith(("model.layers.2.", "model.layers.3.", "model.norm.", "score.")) for each in own), name
        frozen = [each for each in head.parameters() if not any(each is mine for mine in own.values())]
        assert [tuple(each.shape) for each in frozen] == ([(client.trunk().vocab_size, client.trunk().d_model)] if name == "policy" else [])
        assert sum(each.numel() * each.element_size() for each in own.values()) < whole
