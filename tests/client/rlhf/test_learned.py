"""The mix with learned heads, whole on a tiny model: heads, RL against them, heads that learn anew, and the best of several."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyhead.client import Client
from polyhead.client.rlhf import arms
from polyhead.client.rlhf.evidence.learned import page as learned_page
from polyhead.client.rlhf.evidence.learned import runs
from polyhead.client.rlhf.evidence.learned.plan import CONFLICT, FIXED, HEADS, LIGHTER, REFRESHED, LearnedPlan, Unit
from polyhead.client.rlhf.evidence.learned.runs import LearnedHeads, best_of
from polyhead.client.rlhf.evidence.plan import PlanError
from polyhead.client.rlhf.evidence.results import Results
from polyhead.heads.training.data import RuleJudgement
from polyhead.heads.training.labels import RuleLabel

TINY: dict[str, Any] = {
    "experiment": "learned",
    "seeds": [0],
    "train_questions": 4,
    "held_out_questions": 3,
    "held_out_samples": 2,
    "base_samples": 4,
    "fewer_samples": [],
    "preference_weight": 1.0,
    "rule_weight": 2.0,
    "refresh_after": [1],
    "refresh_samples": 2,
    "best_of": 2,
    "picks": 1,
    "rl": {"rounds": 2, "prompts": 2, "samples": 2, "max_new_tokens": 8, "kl_limit": 50.0},
}


def plan_of(folder: Path, **changes: Any) -> LearnedPlan:
    (folder / "learned.json").write_text(json.dumps({**TINY, **changes}))
    return LearnedPlan.read(folder / "learned.json")


def test_heads_learn_anew_between_rounds(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends after its refresh goes on with the same new heads: they are not trained a second time."""
    plan, said, taught = plan_of(tmp_path), list[str](), list[int]()
    work = LearnedHeads(client, plan, tmp_path, said.append)
    train = runs.train_judged_heads

    def counted(*given: Any, **more: Any) -> Any:
        taught.append(len(given[2]))
        return train(*given, **more)

    stage = LearnedHeads._stage

    def interrupted(self: LearnedHeads, unit: Unit, number: int, *more: Any) -> str:
        if (unit.what, number) == (REFRESHED, 1):
            raise KeyboardInterrupt
        return stage(self, unit, number, *more)

    monkeypatch.setattr(runs, "train_judged_heads", counted)
    monkeypatch.setattr(LearnedHeads, "_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert taught == [16, 16]  # all replies of the base, and half of them beside fresh ones
    monkeypatch.setattr(LearnedHeads, "_stage", stage)
    assert LearnedHeads(client, plan, tmp_path, said.append).run() == 0
    assert taught == [16, 16]
    found = {what: Results(tmp_path, plan).find(Unit(0, what)) or {} for what in (HEADS, FIXED, REFRESHED)}
    assert [each["samples"] for each in found[HEADS]["learned"]] == [4]
    assert [each["number"] for each in found[REFRESHED]["rounds"]] == [1, 2]
    [refresh] = found[REFRESHED]["refreshes"]
    assert (len(found[FIXED]["refreshes"]), refresh["replies"]) == (0, 16)
    assert [row["preference"] for row in refresh["before"]] == [row["preference"] for row in refresh["after"]]  # the same replies
    assert [row["head_preference"] for row in refresh["before"]] != [row["head_preference"] for row in refresh["after"]]
    assert all((len(each["replies"]), len(each["reranked"])) == (6, 3) for each in found.values())
    assert not list((tmp_path / "runs").iterdir())
    assert_page_tells_of_them(Results(tmp_path, plan))


def assert_page_tells_of_them(results: Results[LearnedPlan]) -> None:
    text = "\n\n".join(learned_page.chapter(results))
    text, _, corner = text.partition("What the heads that reward say")
    rows = [line for line in text.splitlines() if line.startswith(("| base", "| RL", "| refresh"))]
    assert [row.split("|")[1].strip() for row in rows] == [
        *("base", "base, best of 2", "RL: heads stay", "RL: heads stay, best of 2"),
        *("RL: heads learn anew", "RL: heads learn anew, best of 2"),
        *("base", "RL: heads stay", "RL: heads learn anew", "refresh 1, the old heads", "refresh 1, the new ones"),
    ]
    kinds = [[cell.strip() for cell in line.split("|")[1:-1]] for line in corner.splitlines() if line.startswith(("| base", "| RL"))]
    assert [sum(int(row[2]) for row in kinds if row[0] == name) for name in learned_page.NAMES.values()] == [6, 6, 6]
    for _, kind, _, liked, violates, reward, other in kinds:
        assert kind in learned_page.KINDS
        assert float(reward) == pytest.approx(float(liked) + 4 * (1 - float(violates)), abs=0.03)
        assert float(other) == pytest.approx(float(liked) + 2 * (1 - float(violates)), abs=0.02)
    told = [line.split("|") for line in text.splitlines() if line.startswith(("| base", "| RL")) and line.count("|") > 8]
    assert [row[7].strip() == "" for row in told] == [False, True] * 3  # no KL of chosen replies
    assert "learn from 16 replies of the base (4 to each question)" in " ".join(text.split())
    assert "RL and choosing please both more often than choosing alone: " in " ".join(text.split())
    results.path(Unit(0, REFRESHED)).unlink()
    assert "Not run yet: RL with heads that learn anew (seed 0)." in "\n".join(learned_page.chapter(results))
    for what in (HEADS, FIXED):
        results.path(Unit(0, what)).unlink()
    assert learned_page.chapter(results)[-1].startswith("Not run yet: the heads, RL with heads that stay, ")


def test_fewer_replies_are_the_first_to_each_question() -> None:
    drawn: Any = [SimpleNamespace(prompt_index=index % 2, number=index) for index in range(6)]
    assert [each.number for each in runs._first_of_each(drawn, 2)] == [0, 1, 2, 3]


def test_the_best_of_each_few_is_chosen() -> None:
    rewards = ((0, 1), (1, 5), (0, 3), (1, 2), (0, 0), (0, 9))
    drawn: Any = [SimpleNamespace(prompt_index=question, reward=reward) for question, reward in rewards]
    assert [(each.prompt_index, each.reward) for each in best_of(drawn, 2, lambda each: each.reward)] == [(0, 3), (0, 9), (1, 5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "no plan has: colour"),
        ({"seeds": []}, "at least one seed"),
        ({"refresh_after": [2]}, r"refresh_after must rise, between round 1 and the last: \[2\]"),
        ({"conflict_first": 1}, "conflict_first must be true or false: 1"),
        ({"fewer_samples": [8]}, r"at most base_samples: \[8\]"),
    ],
)
def test_a_plan_is_checked_before_any_run(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=f"learned.json: .*{message}"):
        plan_of(tmp_path, **changes)


def test_the_plan_in_the_repository() -> None:
    """Three seeds; RL as in the plan of the arms. Where the conflict comes first, seeds are others and all else is the same."""
    plan, conflict = LearnedPlan.read(), LearnedPlan.read(CONFLICT)
    assert (len(plan.units()), plan.stages) == (9, [5, 5])
    assert not {unit.name for unit in plan.units()} & {unit.name for unit in conflict.units()}
    assert dataclasses.replace(conflict, sha256=plan.sha256, seeds=plan.seeds, conflict_first=False) == plan
    lighter = LearnedPlan.read(LIGHTER)
    assert not {unit.name for unit in lighter.units()} & {unit.name for each in (plan, conflict) for unit in each.units()}
    assert (len(lighter.units()), lighter.arm.rule_weight, lighter.stages) == (9, 1.0, [5, 5])


def test_the_conflict_comes_first_where_it_is_asked_for() -> None:
    """As many broken as kept in any case. Which ones is the seed's choice, among those in the first person as among the others."""
    labels = [RuleLabel.DEFINITELY_BROKEN] * 6 + [RuleLabel.DEFINITELY_FOLLOWED] * 30
    groups = [arms.CONFLICT if index in (0, 1, 8, 9, 10) else "" for index in range(36)]
    rows = [RuleJudgement("Q?", (index,), "r", *each) for index, each in enumerate(zip(labels, groups, strict=True))]
    kept = [row for row in arms._balanced(rows, 0, True) if row.label is RuleLabel.DEFINITELY_FOLLOWED]
    assert (len(kept), sum(row.group == arms.CONFLICT for row in kept)) == (6, 3)
    assert kept != [row for row in arms._balanced(rows, 1, True) if row.label is RuleLabel.DEFINITELY_FOLLOWED]
    assert sum(row.group == arms.CONFLICT for row in arms._balanced(rows, 0, False)) < 5
