"""Rounds on a served trunk: where their time goes, and how many tokens its trunk and its heads computed for them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from polyhead.client import Client
from polyhead.client.rlhf import judges
from polyhead.client.rlhf.evidence.sharing.plan import SharingPlan
from polyhead.client.rlhf.measure import ask, read_questions
from polyhead.heads.training.rl import rounds
from polyhead.heads.training.rl.config import RLConfig
from polyhead.heads.training.rl.prompts import PromptPool
from polyhead.heads.training.rl.report import RoundReport
from polyhead.heads.training.rl.rewards import HeadsReward

NAME = "sharing"
COUNTERS = ("trunk_tokens", "head_tokens", "prompt_tokens", "generated_tokens")


def measure_rounds(client: Client, plan: SharingPlan, folder: Path) -> dict[str, Any]:
    """PPO with a preference and a rule head as the reward: five roles on one trunk. The first round, which warms caches, is left out.

    Each round asks other questions, so no prompt is found in the cache of an earlier round.
    """
    questions, _ = read_questions((plan.rounds + 1) * plan.prompts, 0)
    pool = PromptPool([(ask(question), "questions") for question in questions], seed=0)
    config = RLConfig(
        rounds=plan.rounds + 1,
        prompts=plan.prompts,
        samples=plan.samples,
        max_new_tokens=plan.max_new_tokens,
        learning_rate=plan.learning_rate,
        value_learning_rate=plan.learning_rate,
        kl_limit=1000.0,  # no round is drawn twice
        collapse=1000.0,
    )
    run = rounds.Run(client, pool, HeadsReward(rules=(judges.RULE,)), folder, NAME, start_from="reference")
    found, before, began_at = list[dict[str, Any]](), _counts(client), time.monotonic()

    def note(report: RoundReport) -> None:
        nonlocal before, began_at
        now, ended_at = _counts(client), time.monotonic()
        tokens = {name: now[name] - before[name] for name in COUNTERS}
        found.append({"seconds": report.seconds, "wall": ended_at - began_at, "replies": report.num_replies, **tokens})
        before, began_at = now, ended_at

    rounds.train(run, config, note)
    trunk = client.trunk()
    return {"rounds": found[1:], "num_layers": trunk.num_layers, "split_layer": trunk.split_layer}


def _counts(client: Client) -> dict[str, int]:
    counters = client.status().counters
    return {name: counters[name] for name in COUNTERS}
