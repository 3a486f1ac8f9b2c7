"""What sharing buys: counted on a tiny model, and told on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyhead.client import Client
from polyhead.client.rlhf.evidence.plan import PlanError
from polyhead.client.rlhf.evidence.results import Results
from polyhead.client.rlhf.evidence.sharing import page as sharing_page
from polyhead.client.rlhf.evidence.sharing.plan import SERVED, TRL, SharingPlan, Unit
from polyhead.client.rlhf.evidence.sharing.served import measure_rounds

TINY: dict[str, Any] = {"experiment": "sharing", "rounds": 1, "prompts": 2, "samples": 2, "max_new_tokens": 4, "learning_rate": 1e-4}


def plan_of(folder: Path, **changes: Any) -> SharingPlan:
    (folder / "sharing.json").write_text(json.dumps({**TINY, **changes}))
    return SharingPlan.read(folder / "sharing.json")


def test_a_round_counts_its_tokens(client: Client, tmp_path: Path) -> None:
    """The first round is left out. Each role's head reads every drawn token, and the trunk computes a token once."""
    plan, results = plan_of(tmp_path), Results(tmp_path, plan_of(tmp_path))
    results.keep(Unit(SERVED), measure_rounds(client, plan, tmp_path / "runs"))
    found = results.find(Unit(SERVED)) or {}
    [counted] = found["rounds"]
    assert counted["replies"] == 4
    assert 0 < counted["generated_tokens"] <= 16
    assert counted["trunk_tokens"] < counted["head_tokens"]
    assert counted["wall"] >= sum(counted["seconds"].values()) * 0.99
    trained: Any = [{"memory": {"trainer": 100.0, "peak": 300.0, "whole_models": 900.0}}, {"memory": None}]
    text = " ".join("\n".join(sharing_page.chapter(results, trained)).split())
    assert "Not run yet: a round of TRL." in text
    assert f"{counted['trunk_tokens']} went through the trunk, and {counted['head_tokens']} through heads" in text
    assert "take 100 MiB. Trainers of whole models would hold 900 MiB" in text
    own, served = {"wall": [9.0, 7.0, 8.0], "experience": [5.0, 4.0, 5.0]}, {"wall": [6.0], "experience": [2.0]}
    results.keep(Unit(TRL), {"own": own, "served": served})
    text = "\n".join(sharing_page.chapter(results, []))
    assert "| TRL, policy, its own generation | 5.0 (4.0 to 5.0) | 3.0 (3.0 to 4.0) |  | 8.0 (7.0 to 9.0) |" in text
    assert "the training: 4.0 s for a policy there" in " ".join(text.split())


def test_tokens_are_those_of_the_trunk_and_of_the_rules() -> None:
    rounds = [{"trunk_tokens": 100, "head_tokens": 200, "prompt_tokens": 80, "generated_tokens": 20}]
    count = sharing_page.Counted.of({"rounds": rounds, "split_layer": 3, "num_layers": 4}, samples=4)
    assert (count.rules, count.share) == (60, (100 * 3 + 200) / 800)


def test_a_plan_is_checked_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"sharing.json: rounds must be a whole number of at least 1: 0"):
        plan_of(tmp_path, rounds=0)
    assert SharingPlan.read().prompts * SharingPlan.read().samples == 48
