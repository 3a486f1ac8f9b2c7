"""The runs of the evidence, one after the other: a finished one is never repeated, one that was cut short goes on from its checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyhead.client import Client
from polyhead.client.rlhf.arms import PREFERENCE, RULE, train_judged_heads
from polyhead.client.rlhf.evidence.arms.plan import GROUND, ArmsPlan, Unit
from polyhead.client.rlhf.evidence.results import Results
from polyhead.client.rlhf.evidence.turns import in_turn
from polyhead.client.rlhf.measure import ask, base_rates, judged_replies, read_questions, sample, shown_replies
from polyhead.client.rlhf.memory import memory
from polyhead.heads.training.fit import TrainingFailed
from polyhead.heads.training.rl import rounds
from polyhead.heads.training.rl.prompts import PromptPool
from polyhead.heads.training.rl.rewards import RewardError
from polyhead.heads.training.rl.rollout import RolloutFailed
from polyhead.heads.training.rl.served import Arm as Served
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.verify import verify

NAME = "evidence"  # of the heads that every run trains, from the reference on: their old versions go, so that the store does not grow


class Arms:
    """The work of one plan in one folder, on one server."""

    def __init__(self, client: Client, plan: ArmsPlan, folder: Path, say: Callable[[str], None] = print) -> None:
        self.client, self.plan, self.folder, self.say = client, plan, folder, say
        self.results = Results(folder, plan)
        self.train, self.held_out = read_questions(plan.train_questions, plan.held_out_questions)
        self.tokens = plan.config.max_new_tokens

    def run(self, budget_minutes: float = math.inf) -> int:
        """All runs that are not there yet; no run begins after the budget is spent. Returns how many are left."""
        return in_turn(self.results, self.plan.units(), self._one, budget_minutes, self.say)

    def _one(self, unit: Unit) -> None:
        (self._ground if unit.arm == GROUND else self._arm)(unit)

    def _ground(self, unit: Unit) -> None:
        """What the base does by itself with this seed, and the heads that learn from the judges' verdicts on it."""
        began_at = time.monotonic()
        drawn = sample(self.client, "reference", self.train, self.plan.base_samples[unit.reward], [], self.tokens, seed=_seed(unit, 1))
        rates = base_rates(drawn)
        found: dict[str, Any] = {"base_rates": dataclasses.asdict(rates), "learned": None, "heads": []}
        if unit.reward == "heads":
            held = sample(self.client, "reference", self.held_out, self.plan.base_samples["heads"], [], self.tokens, seed=_seed(unit, 2))
            learned = train_judged_heads(self.client, self.train, drawn, self.held_out, held, self.folder, unit.seed)
            found |= {"learned": dataclasses.asdict(learned), "heads": [self.client.head(name).ref for name in (PREFERENCE, RULE)]}
            self.say(f"learned heads, held out: {learned}")
        self.results.keep(unit, {**found, **self._measured(unit, "reference", found["heads"], []), "seconds": time.monotonic() - began_at})

    def _arm(self, unit: Unit) -> None:
        """Train one arm and measure it. A run that its guards ended is a result, too: what it left active is measured."""
        ground = self.results.find(dataclasses.replace(unit, arm=GROUND))
        assert ground is not None, "it comes first"
        folder, failed, learner = self.folder / "runs" / unit.name, "", None
        config = dataclasses.replace(self.plan.config, seed=unit.seed)
        pool = PromptPool([(ask(question), "questions") for question in self.train], seed=unit.seed)
        reward = self.plan.arms[unit.arm].reward(unit.reward, ground["base_rates"]["spread"], ground["heads"])
        run = rounds.Run(self.client, pool, reward, folder, NAME, start_from="reference")
        try:
            learner = rounds.train(run, config, lambda report: self.say(report.line(config.rounds)), self.say)
        except (TrainingFailed, RewardError, RolloutFailed) as error:
            failed = str(error)
            self.say(f"the run failed: {failed}")
        reports = [json.loads(line) for line in _lines(folder / "rounds.jsonl")]
        head, began_at = self.client.head(Served(self.client, NAME).policy).ref, time.monotonic()
        found = {"failed": failed, "rounds": reports, **self._measured(unit, head, ground["heads"], ground["replies"])}
        found["memory"] = memory(learner, self.client) if learner is not None else None
        found["gap"] = verify(self.client, learner.policy, head, self._items(), self._states()) if learner is not None else None
        self.results.keep(unit, {**found, "seconds": sum(sum(each["seconds"].values()) for each in reports) + time.monotonic() - began_at})
        shutil.rmtree(folder)  # its checkpoints: gigabytes that nobody needs any more

    def _measured(self, unit: Unit, head: str, heads: list[str], base: list[dict[str, float]]) -> dict[str, Any]:
        """Every held-out reply by itself, so that intervals can be computed from the file alone."""
        drawn = sample(self.client, head, self.held_out, self.plan.held_out_samples, heads, self.tokens, seed=_seed(unit, 3))
        shown = shown_replies(self.client, head, self.held_out, self.tokens)
        return {"replies": judged_replies(drawn, base, heads), "shown": dict(zip(self.held_out, shown, strict=False))}

    def _items(self) -> list[tuple[list[int], list[int]]]:
        """Some replies of the base, to compare the trainer's head with the served one on."""
        drawn = sample(self.client, "reference", self.held_out[:2], 2, [], self.tokens, seed=0)
        return [(list(each.prompt_token_ids), list(each.token_ids)) for each in drawn]

    def _states(self) -> StateStore:
        return StateStore(self.client, self.folder / "states")


def _seed(unit: Unit, purpose: int) -> int:
    """Of draws: 1 for the base's replies, 2 for those that learned heads are measured on, 3 for held-out replies, equal for all arms."""
    return unit.seed * 10 + purpose


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
