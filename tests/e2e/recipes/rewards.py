"""What the tests of recipes draw with, and how they read rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyhead.client import Reward, Sample, ScoredItem

RULES = ["no-insults", "stay-on-topic", "no-threats"]
DRAW: dict[str, Any] = {"seed": 5, "max_new_tokens": 12}


def follow(sample: Sample | ScoredItem) -> list[float]:
    return list(sample.scores["rule"].p_follow.values())


def reward_of(sample: Sample | ScoredItem) -> Reward:
    assert sample.reward is not None
    assert not sample.reward.error
    return sample.reward


def assert_ranked(samples: Sequence[Sample | ScoredItem]) -> None:
    """Rank 0 has the highest reward; equal rewards stand in their order."""
    order = sorted(range(len(samples)), key=lambda index: -reward_of(samples[index]).reward)
    assert [reward_of(samples[index]).rank for index in order] == list(range(len(samples)))
