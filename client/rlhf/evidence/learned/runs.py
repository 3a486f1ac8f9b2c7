"""Learned heads and the policies that they reward, of one plan in one folder, on one server."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.client import Client, Sample
from polyhead.client.rlhf.arms import PREFERENCE, RULE, Arm, Learned, WatchedHeads, train_judged_heads
from polyhead.client.rlhf.evidence.learned.plan import FIXED, HEADS, LearnedPlan, Unit
from polyhead.client.rlhf.evidence.results import Results
from polyhead.client.rlhf.evidence.turns import in_turn
from polyhead.client.rlhf.measure import ask, base_rates, judged_replies, read_questions, sample, shown_replies
from polyhead.heads.training.fit import TrainingFailed
from polyhead.heads.training.returns import deviation
from polyhead.heads.training.rl import rounds
from polyhead.heads.training.rl.prompts import PromptPool
from polyhead.heads.training.rl.rewards import RewardError
from polyhead.heads.training.rl.rollout import RolloutFailed
from polyhead.heads.training.rl.served import Arm as Served
from polyhead.heads.training.tensor_files import write_whole

NAME = "learned"  # of the heads that every run trains
BASE, BASE_HELD_OUT, MEASURED, CHOSEN, FRESH = 1, 2, 3, 4, 5  # purposes of draws, each with seeds of its own
Rows = list[dict[str, float]]


@dataclass(frozen=True)
class Rewarding:
    """Two heads as a reward: the preference in units of its standard deviation over the base's replies."""

    preference: str
    rule: str
    spread: float

    @property
    def heads(self) -> list[str]:
        return [self.preference, self.rule]


@dataclass(frozen=True)
class InUnitsOfTheBase(WatchedHeads):
    """The unit stays when heads are trained anew, so that the weights mean the same in all rounds."""

    base_spread: float = 1.0

    @classmethod
    def of(cls, arm: Arm, rewarding: Rewarding) -> InUnitsOfTheBase:
        """As the arm weighs learned heads: a rule counts twice."""
        found = arm.reward("heads", 1.0, rewarding.heads)
        assert isinstance(found, WatchedHeads), "heads were asked for"
        return cls(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)}, base_spread=rewarding.spread)

    def reward(self, parts: Any, spread: float) -> float:
        return super().reward(parts, self.base_spread)

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "base_spread": self.base_spread}

    def of_sample(self, drawn: Sample) -> float:
        """What this sample would be rewarded with."""
        return self.reward(super().parts("", drawn), 1.0)


class LearnedHeads:
    """The work of one plan."""

    def __init__(self, client: Client, plan: LearnedPlan, folder: Path, say: Callable[[str], None] = print) -> None:
        self.client, self.plan, self.folder, self.say = client, plan, folder, say
        self.results = Results(folder, plan)
        self.train, self.held_out = read_questions(plan.train_questions, plan.held_out_questions)
        self.tokens = plan.config.max_new_tokens

    def run(self, budget_minutes: float = math.inf) -> int:
        """All units that have no result yet. Returns how many are left."""
        return in_turn(self.results, self.plan.units(), self._one, budget_minutes, self.say)

    def _one(self, unit: Unit) -> None:
        began_at = time.monotonic()
        found = self._heads(unit) if unit.what == HEADS else self._trained(unit)
        self.results.keep(unit, {**found, "seconds": time.monotonic() - began_at})
        shutil.rmtree(self.folder / "runs" / unit.name, ignore_errors=True)  # checkpoints, which nobody needs any more

    # ---- the heads of a seed

    def _heads(self, unit: Unit) -> dict[str, Any]:
        """Heads that learn from fewer replies and from all of them; the last ones are those that reward."""
        drawn = self._draw(unit, "reference", self.train, self.plan.base_samples, BASE)
        held = self._draw(unit, "reference", self.held_out, self.plan.base_samples, BASE_HELD_OUT)
        learned = []
        for count in [*self.plan.fewer_samples, self.plan.base_samples]:
            own = _first_of_each(drawn, count)
            learned.append({"samples": count, "replies": len(own), **dataclasses.asdict(self._taught(unit, own, held))})
        rewarding = self._rewarding(unit)
        found = {"base_rates": dataclasses.asdict(base_rates(drawn)), "learned": learned, "heads": dataclasses.asdict(rewarding)}
        return {**found, **self._measured(unit, "reference", rewarding, [])}

    def _taught(self, unit: Unit, drawn: Sequence[Sample], held: Sequence[Sample], start_from: tuple[str, str] | None = None) -> Learned:
        """Both heads trained on the judges' verdicts, and active."""
        states = self.folder / "runs" / unit.name
        more: Any = {"conflict_first": self.plan.conflict_first, **({"start_from": start_from} if start_from else {})}
        learned = train_judged_heads(self.client, self.train, drawn, self.held_out, held, states, unit.seed, self.say, **more)
        self.say(f"learned heads, {len(drawn)} replies: {learned}")
        return learned

    def _rewarding(self, unit: Unit) -> Rewarding:
        """The active heads, with the spread of their preference over the base's replies to held-out questions."""
        preference, rule = (self.client.head(name).ref for name in (PREFERENCE, RULE))
        drawn = self._draw(unit, "reference", self.held_out, self.plan.held_out_samples, MEASURED, [preference, rule])
        liked = [row["head_preference"] for row in judged_replies(drawn, [], [preference, rule])]
        return Rewarding(preference, rule, deviation(liked) or 1.0)

    # ---- policies

    def _trained(self, unit: Unit) -> dict[str, Any]:
        """RL in stages, with new heads between two of them where they are refreshed."""
        ground = self.results.find(Unit(unit.seed, HEADS))
        assert ground is not None, "it comes first"
        folder, failed = self.folder / "runs" / unit.name, ""
        rewarding, refreshes = Rewarding(**ground["heads"]), list[dict[str, Any]]()
        lengths = [self.plan.config.rounds] if unit.what == FIXED else self.plan.stages
        reports: list[dict[str, Any]] = []
        policy, value = "reference", "value"
        for stage, length in enumerate(lengths):
            if stage:
                refresh = self._refresh(unit, stage, policy, rewarding, folder)
                rewarding, refreshes = Rewarding(**refresh["heads"]), [*refreshes, refresh]
            failed = self._stage(unit, stage, length, policy, value, rewarding, folder)
            reports += _reports(folder / str(stage), sum(lengths[:stage]))
            policy, value = (self.client.head(name).ref for name in (Served(self.client, NAME).policy, Served(self.client, NAME).value))
            if failed:
                break
        measured = self._measured(unit, policy, rewarding, ground["replies"])
        return {"failed": failed, "rounds": reports, "refreshes": refreshes, **measured}

    def _stage(self, unit: Unit, stage: int, length: int, policy: str, value: str, rewarding: Rewarding, folder: Path) -> str:
        """Some rounds from these heads on; returns why they failed, or nothing. They go on where they were cut short."""
        seed = unit.seed * 100 + stage
        config = dataclasses.replace(self.plan.config, rounds=length, seed=seed)
        pool = PromptPool([(ask(question), "questions") for question in self.train], seed=seed)
        reward = InUnitsOfTheBase.of(self.plan.arm, rewarding)
        start = _once(folder / f"{stage}.json", lambda: {"start_from": policy, "value_from": value})
        run = rounds.Run(self.client, pool, reward, folder / str(stage), NAME, **start)
        try:
            rounds.train(run, config, lambda report: self.say(report.line(length)), self.say)
        except (TrainingFailed, RewardError, RolloutFailed) as error:
            self.say(f"the run failed: {error}")
            return str(error)
        return ""

    def _refresh(self, unit: Unit, stage: int, policy: str, old: Rewarding, folder: Path) -> dict[str, Any]:
        """Heads that go on learning from the present policy's replies and as many of the base's; kept as soon as they are there."""

        def refreshed() -> dict[str, Any]:
            count = self.plan.refresh_samples
            fresh = self._draw(unit, policy, self.train, count, FRESH + stage)
            drawn = [*self._draw(unit, "reference", self.train, count, BASE), *fresh]
            held = self._draw(unit, policy, self.held_out, self.plan.held_out_samples, MEASURED, old.heads)
            self._taught(unit, drawn, held, (old.preference, old.rule))
            new = self._rewarding(unit)
            again = self._draw(unit, policy, self.held_out, self.plan.held_out_samples, MEASURED, new.heads)
            before, after = judged_replies(held, [], old.heads), judged_replies(again, [], new.heads)
            return {"heads": dataclasses.asdict(new), "replies": len(drawn), "before": before, "after": after}

        return _once(folder / f"refresh-{stage}.json", refreshed)

    def _measured(self, unit: Unit, head: str, rewarding: Rewarding, base: Rows) -> dict[str, Any]:
        """Held-out replies as they come, and the best of several by both heads."""
        plan, heads = self.plan, rewarding.heads
        replies = judged_replies(self._draw(unit, head, self.held_out, plan.held_out_samples, MEASURED, heads), base, heads)
        drawn = self._draw(unit, head, self.held_out, plan.best_of * plan.picks, CHOSEN, heads)
        chosen = best_of(drawn, plan.best_of, InUnitsOfTheBase.of(plan.arm, rewarding).of_sample)
        shown = shown_replies(self.client, head, self.held_out, self.tokens)
        reranked = judged_replies(chosen, base or replies, heads)
        return {"replies": replies, "reranked": reranked, "shown": dict(zip(self.held_out, shown, strict=False))}

    def _draw(self, unit: Unit, head: str, questions: Sequence[str], n: int, purpose: int, heads: Sequence[str] = ()) -> list[Sample]:
        return sample(self.client, head, questions, n, heads, self.tokens, seed=unit.seed * 100 + purpose)


def best_of(drawn: Sequence[Sample], count: int, reward: Callable[[Sample], float]) -> list[Sample]:
    """Of each `count` replies in turn to one question the one that is rewarded most; the first of several."""
    by_question: dict[int, list[Sample]] = {}
    for each in drawn:
        by_question.setdefault(each.prompt_index, []).append(each)
    found = []
    for own in by_question.values():
        found += [max(own[start : start + count], key=reward) for start in range(0, len(own), count)]
    return found


def _first_of_each(drawn: Sequence[Sample], count: int) -> list[Sample]:
    """The first so many replies to each question."""
    seen: dict[int, int] = {}
    found = []
    for each in drawn:
        seen[each.prompt_index] = seen.get(each.prompt_index, 0) + 1
        if seen[each.prompt_index] <= count:
            found.append(each)
    return found


def _reports(folder: Path, before: int) -> list[dict[str, Any]]:
    """A stage's rounds, numbered on from those before it."""
    path = folder / "rounds.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    reports = [json.loads(line) for line in lines]
    return [{**report, "number": report["number"] + before} for report in reports]


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returned the first time, before the run was cut short."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(made).encode())
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
