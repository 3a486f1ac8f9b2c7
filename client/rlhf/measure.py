"""What a policy's replies to a set of questions are like, by the judges, by the heads, and by their distance from the reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.client import Client, Sample
from polyhead.client.rlhf import judges
from polyhead.heads.training.data import Messages

SEED = 4242
QUESTIONS = Path(__file__).parent / "questions.json"


@dataclass(frozen=True)
class Measure:
    """Means over replies."""

    preference: float  # the judge's, 0 to 4
    wins: float  # share of replies that the judge prefers to the base's replies to the same question; a tie is a half
    broken: float
    kept_and_preferred: float
    kl: float  # nats a reply
    length: float
    head_preference: float | None  # the learned heads', where there are some
    head_broken: float | None
    replies: list[str]  # of the first questions, at temperature 0.7


@dataclass(frozen=True)
class BaseRates:
    """Of the base's replies, before any training."""

    replies: int
    preference: float
    broken: float
    spread: float  # standard deviation of the preference; 1 where all are equal
    correlation: float  # of preference and rule broken
    prompts_with_both: float  # share of prompts with replies that keep the rule and replies that break it


def read_questions(num_train: int, num_held_out: int) -> tuple[list[str], list[str]]:
    """(to train on, held out)."""
    questions = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    return questions["train"][:num_train], questions["held_out"][:num_held_out]


def ask(question: str) -> Messages:
    """As a chat prompt."""
    return [{"role": "user", "content": question}]


def sample(
    client: Client, head: str, questions: Sequence[str], n: int, heads: Sequence[str], tokens: int, seed: int = SEED
) -> list[Sample]:
    """Replies at temperature 1, with the reference's log-probs and the learned heads' scores."""
    rules = {"rules": [judges.RULE]} if heads else {}
    options: Any = {"n": n, "head": head, "seed": seed, "max_new_tokens": tokens, "score": ["reference", *heads], **rules}
    return client.generate([ask(question) for question in questions], temperature=1.0, **options)


def measure(
    client: Client, head: str, questions: Sequence[str], base: Sequence[Sample], heads: Sequence[str], n: int, tokens: int
) -> Measure:
    """`base` are the base policy's replies to the same questions."""
    samples = sample(client, head, questions, n, heads, tokens)
    return of_samples(samples, base, heads, shown_replies(client, head, questions, tokens))


def shown_replies(client: Client, head: str, questions: Sequence[str], tokens: int) -> list[str]:
    """To the first three questions, at a temperature where the model makes more sense."""
    shown = client.generate([ask(question) for question in questions[:3]], head=head, temperature=0.7, seed=1, max_new_tokens=tokens)
    return [" ".join(each.text.split()) for each in shown]


def of_samples(samples: Sequence[Sample], base: Sequence[Sample], heads: Sequence[str], replies: list[str]) -> Measure:
    """The numbers of drawn replies."""
    judged = judged_replies(samples, judged_replies(base, [], []), heads)

    def mean(name: str) -> float:
        return float(np.mean([each[name] for each in judged]))

    return Measure(
        preference=mean("preference"),
        wins=mean("wins"),
        broken=mean("broken"),
        kept_and_preferred=mean("kept_and_preferred"),
        kl=mean("kl"),
        length=mean("length"),
        head_preference=mean("head_preference") if heads else None,
        head_broken=mean("head_broken") if heads else None,
        replies=replies,
    )


def judged_replies(samples: Sequence[Sample], base: Sequence[Mapping[str, float]], heads: Sequence[str]) -> list[dict[str, float]]:
    """Measure's numbers for each reply by itself, and the number of its question; `base` are such rows of the base, none: its own."""
    rows: list[dict[str, float]] = []
    for each in samples:
        row: dict[str, float] = {
            "question": each.prompt_index,
            "preference": judges.preference(each.text),
            "broken": float(judges.is_broken(each.text)),
            "kept_and_preferred": float(judges.is_kept_and_preferred(each.text)),
            "kl": float((each.logprobs - each.scores["reference"].logprobs).sum()),
            "length": float(len(each.token_ids)),
        }
        if heads:
            row["head_preference"] = float(each.scores[heads[0]].value)
            row["head_broken"] = float(each.scores[heads[1]].p_violate[judges.RULE.id])
        rows.append(row)
    others: dict[float, list[float]] = {}
    for other in base or rows:
        others.setdefault(other["question"], []).append(other["preference"])
    return [{**row, "wins": _wins(row["preference"], others[row["question"]])} for row in rows]


def _wins(score: float, others: Sequence[float]) -> float:
    return float(np.mean([1.0 if score > other else 0.5 if score == other else 0.0 for other in others]))


def base_rates(drawn: Sequence[Sample]) -> BaseRates:
    """How often the judges are content with these replies of the base."""
    liked = np.array([judges.preference(each.text) for each in drawn])
    broken = np.array([judges.is_broken(each.text) for each in drawn], float)
    by_prompt: dict[int, set[bool]] = {}
    for each in drawn:
        by_prompt.setdefault(each.prompt_index, set()).add(judges.is_broken(each.text))
    return BaseRates(
        replies=len(drawn),
        preference=float(liked.mean()),
        broken=float(broken.mean()),
        spread=float(liked.std()) or 1.0,
        correlation=float(np.corrcoef(liked, broken)[0, 1]) if liked.std() and broken.std() else 0.0,
        prompts_with_both=float(np.mean([len(found) == 2 for found in by_prompt.values()])),
    )
