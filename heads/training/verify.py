"""Does the head that a trainer holds compute what the server serves? The largest gap between the two, on given texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from polyhead.client import Client
from polyhead.client.results.records import HeadManifest
from polyhead.client.results.results import HeadScore, PolicyScore, PreferenceScore, ScoredItem, ValueScore
from polyhead.heads.model.family import HeadModule
from polyhead.heads.training.losses import token_logprobs
from polyhead.heads.training.state_store import StateStore

Item = tuple[list[int], list[int]]  # prompt ids, completion ids


def verify(client: Client, head: HeadModule, reference: str, items: Sequence[Item], states: StateStore) -> float:
    """The largest absolute difference between `head` and the served `reference` ("policy@7", "value") over all tokens of the items.

    Log-probs of a policy, values of a value head, the raw score of a preference head, in nats or in the score's own unit. In float32 on
    both sides it is near 1e-5; more says that the weights, the precision or the read position differ. Raises ValueError for a rule head,
    and for an item that the server could not score.
    """
    if not items:
        raise ValueError("no items: a gap needs at least one text")
    manifest = client.head(reference).manifest
    scored = client.score(list(items), heads=[reference])
    rows = states.states([prompt + completion for prompt, completion in items])
    return max(_gap(head, manifest, reference, item, row) for item, row in zip(scored, rows, strict=True))


@torch.no_grad()
def _gap(head: HeadModule, manifest: HeadManifest, reference: str, item: ScoredItem, states_TD: torch.Tensor) -> float:
    if item.error:
        raise ValueError(f"the server could not score an item: {item.error}")
    score = item.scores[reference]
    first, end = _rows(score, len(item.prompt_token_ids), len(states_TD))
    output = head(states_TD[None], torch.arange(len(states_TD))[None], torch.arange(first, end))
    ours = token_logprobs(output, item.token_ids) if isinstance(score, PolicyScore) else output.float()
    if isinstance(score, ValueScore):  # served without the bias, and scaled
        ours = (ours - manifest.bias) / manifest.scale
    return float((ours - torch.tensor(_served(score))).abs().max())


def _served(score: HeadScore) -> list[float]:
    if isinstance(score, PolicyScore):
        return [float(value) for value in score.logprobs]
    if isinstance(score, ValueScore):
        return [float(value) for value in score.values]
    assert isinstance(score, PreferenceScore)
    return [score.raw]


def _rows(score: HeadScore, num_prompt: int, length: int) -> tuple[int, int]:
    """Rows [first, end) of the states that the served head read."""
    if isinstance(score, PolicyScore | ValueScore):
        return num_prompt - 1, length - 1
    if isinstance(score, PreferenceScore) and score.present and score.position < length:
        return score.position, score.position + 1
    raise ValueError(f"this head does not read the text alone: {score.head}\nhint: give a policy, a value, or a preference head that does")
