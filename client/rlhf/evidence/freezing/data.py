"""A seed's data: the base's replies to all questions, drawn once and kept, so that every variant learns from the same ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.client import Client, Sample
from polyhead.client.rlhf import judges
from polyhead.client.rlhf.evidence.freezing.plan import FreezingPlan
from polyhead.client.rlhf.evidence.plan import PlanError
from polyhead.client.rlhf.measure import base_rates, read_questions, sample
from polyhead.heads.training.tensor_files import write_whole


@dataclass(frozen=True)
class Row:
    """One question and its replies, as ids, in the judge's order: rank 1 is liked best."""

    question: int
    prompt_ids: list[int]
    replies: list[list[int]]
    ranks: list[int]


@dataclass(frozen=True)
class Data:
    """Of one seed."""

    train_questions: list[str]
    held_out_questions: list[str]
    train: list[Row]  # questions whose replies the judge tells apart
    held_out: list[Row]
    spread: float  # standard deviation of the base's preference

    @classmethod
    def drawn(cls, client: Client, plan: FreezingPlan, seed: int) -> tuple[Data, dict[str, Any]]:
        """(the data, base rates). Raises PlanError where no two replies to a question differ in the judge's eyes."""
        train, held_out = read_questions(plan.train_questions, plan.held_out_questions)
        tokens, count = plan.config.max_new_tokens, plan.base_samples
        own = sample(client, "reference", train, count, [], tokens, seed=seed * 10 + 1)
        held = sample(client, "reference", held_out, count, [], tokens, seed=seed * 10 + 2)
        rates, rows, held_rows = base_rates(own), _rows(own), _rows(held)
        if not rows or not held_rows:
            which = "training" if not rows else "held-out"
            hint = "hint: a plan with more questions, or with more base_samples"
            raise PlanError(f"the judge likes the replies to each {which} question equally: there is nothing to order\n{hint}")
        return cls(train, held_out, rows, held_rows, rates.spread), dataclasses.asdict(rates)

    @classmethod
    def read(cls, path: Path) -> Data:
        """What `write` wrote. Raises OSError."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        rows = {name: [Row(**row) for row in plain[name]] for name in ("train", "held_out")}
        return cls(**{**plain, **rows})

    def write(self, path: Path) -> None:
        """Raises OSError if the disk is full."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(dataclasses.asdict(self)).encode())


def _rows(drawn: Sequence[Sample]) -> list[Row]:
    """Ties within a question stay ties; a question whose replies are all liked equally says nothing."""
    by_question: dict[int, list[Sample]] = {}
    for each in drawn:
        if each.text:
            by_question.setdefault(each.prompt_index, []).append(each)
    rows = []
    for question, replies in sorted(by_question.items()):
        liked = [judges.preference(each.text) for each in replies]
        if len(set(liked)) > 1:
            order = sorted(set(liked), reverse=True)
            ids = [list(each.token_ids) for each in replies]
            rows.append(Row(question, list(replies[0].prompt_token_ids), ids, [order.index(each) + 1 for each in liked]))
    return rows
