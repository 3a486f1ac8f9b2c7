"""What lower precision costs: perplexity of the prose, and greedy tokens, float32 against every variant of ours. Public API alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead.client import Client
from polyhead.client.bench.results import Row, Series
from polyhead.client.bench.session import Session

REFERENCE = "--trunk-dtype float32 --head-dtype float32"
HEAD = "policy@1"  # the model's own layers


@dataclass(frozen=True, slots=True)
class Answers:
    """What one server says of the prose, and to the prompts."""

    logprobs: NDArray[np.float32]  # (tokens of the prose,)
    likeliest: NDArray[np.int64]  # (tokens of the prose,): what it would have said there
    replies: list[list[int]]  # greedy

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.logprobs.mean()))


def quality(session: Session) -> list[Row]:
    """Three rows; the first series of each is the main variant, the last one float32."""
    sizes = session.plan.sizes
    prompts = session.work.prompts(sizes.agreement_prompts, sizes.prompt_tokens)
    text = session.work.prose[: session.ours.client.trunk().context_length - 2]
    answers = {
        session.server(each).name: read(session.server(each).client, text, prompts, sizes.num_tokens) for each in session.plan.servers
    }
    exact = read(session.server(REFERENCE).client, text, prompts, sizes.num_tokens)
    return quality_rows(answers, exact, len(text), sizes.num_tokens)


def read(client: Client, text: list[int], prompts: list[list[int]], num_tokens: int) -> Answers:
    [scored] = client.score([(text[:1], text[1:])], heads=[HEAD], top_logprobs=1)
    score = scored.scores[HEAD]
    samples = client.generate(prompts, head=HEAD, temperature=0.0, max_new_tokens=num_tokens, ignore_eos=True)
    return Answers(score.logprobs, score.top_token_ids[:, 0], [sample.token_ids for sample in samples])


def quality_rows(answers: dict[str, Answers], exact: Answers, num_tokens: int, reply_tokens: int) -> list[Row]:
    perplexities = [Series(name, (each.perplexity,)) for name, each in answers.items()]
    prefixes = [Series(name, tuple(agreed_tokens(each, exact))) for name, each in answers.items()]
    choices = [Series(name, (float((each.likeliest == exact.likeliest).mean()),)) for name, each in answers.items()]
    distances = tuple(f"{name}: {distance(each, exact)}" for name, each in answers.items())
    perplexities.append(Series("float32", (exact.perplexity,)))
    choice = "share of the prose's positions with the same likeliest token as float32"
    prefix = f"greedy tokens of {reply_tokens} before the first that float32 does not draw"
    return [
        variants("perplexity", f"perplexity of {num_tokens} tokens of prose", "", perplexities, ()),
        variants("choices", choice, "", choices, distances),
        variants("replies", prefix, "tokens", prefixes, shares(answers, exact)),
    ]


def variants(name: str, what: str, unit: str, series: list[Series], notes: tuple[str, ...]) -> Row:
    return Row(f"quality {name}", what, unit, True, tuple(series), (), notes, is_contest=False)


def agreed_tokens(given: Answers, exact: Answers) -> list[float]:
    """Of each reply, how many tokens come before the first difference."""
    pairs = zip(given.replies, exact.replies, strict=True)
    return [float(next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))) for ours, theirs in pairs]


def shares(answers: dict[str, Answers], exact: Answers) -> tuple[str, ...]:
    notes = []
    for name, given in answers.items():
        equal = [ours == theirs for ours, theirs in zip(given.replies, exact.replies, strict=True)]
        same = np.mean(
            [a == b for ours, theirs in zip(given.replies, exact.replies, strict=True) for a, b in zip(ours, theirs, strict=True)]
        )
        notes.append(f"{name}: {sum(equal)} of {len(equal)} replies equal, {same:.1%} of all tokens at their place")
    return tuple(notes)


def distance(given: Answers, exact: Answers) -> str:
    gaps = abs(given.logprobs - exact.logprobs)
    return f"log-probs differ by {gaps.mean():.2g} on average, {gaps.max():.2g} at most"
