"""What a policy's replies to a set of questions are like, by the judges, by the heads, and by their distance from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyhead.client import Client, Sample
from polyhead.client.rlhf import judges
from polyhead.heads.training.data import Messages

SEED = 4242


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
    liked = [judges.preference(each.text) for each in samples]
    return Measure(
        preference=float(np.mean(liked)),
        wins=float(np.mean([_wins(each.prompt_index, score, base) for each, score in zip(samples, liked, strict=True)])),
        broken=float(np.mean([judges.is_broken(each.text) for each in samples])),
        kept_and_preferred=float(np.mean([judges.is_kept_and_preferred(each.text) for each in samples])),
        kl=float(np.mean([(each.logprobs - each.scores["reference"].logprobs).sum() for each in samples])),
        length=float(np.mean([len(each.token_ids) for each in samples])),
        head_preference=float(np.mean([each.scores[heads[0]].value for each in samples])) if heads else None,
        head_broken=float(np.mean([each.scores[heads[1]].p_violate[judges.RULE.id] for each in samples])) if heads else None,
        replies=replies,
    )


def _wins(question: int, score: float, base: Sequence[Sample]) -> float:
    others = [judges.preference(each.text) for each in base if each.prompt_index == question]
    return float(np.mean([1.0 if score > other else 0.5 if score == other else 0.0 for other in others]))
