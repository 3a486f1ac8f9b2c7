"""P4: an RL round's rollout with all its scores, in one call of ours, against generation and a whole pass for every role and rule."""

from __future__ import annotations

import itertools
from functools import partial

from polyhead.client import Client, Rule, Sample
from polyhead.client.bench.measures.decoding import checked_seconds
from polyhead.client.bench.ours import Ours, timed
from polyhead.client.bench.results import Row, beats, best
from polyhead.client.bench.session import TRANSFORMERS, VLLM, Contender, Session, System

SCORED_ROLES = ("reference", "value", "preference", "rule")


def experience(session: Session) -> Row:
    """P4: ours is one Generate call; the others generate, then run a pass for every role and rule."""
    sizes = session.plan.sizes
    questions = session.ours.questions(session.work, sizes.num_rules, sizes.rule_tokens)
    passes = [
        *[{"reads": "logprobs", "num_last": sizes.num_tokens}] * 2,  # policy and reference
        {"reads": "scalars", "num_last": sizes.num_tokens},  # values
        {"reads": "scalars", "num_last": 1},  # preference
        *({"reads": "answers", "num_last": 1, "suffix": ids} for _, ids in questions.values()),
    ]
    rules = [Rule(key, text) for key, (text, _) in questions.items()]
    seeds = itertools.count(1)

    def rollout(ours: Ours) -> float:
        prompts = session.work.prompts(sizes.batch_prompts, sizes.prompt_tokens)
        seconds, samples = timed(lambda: roll_out(ours.client, prompts, rules, sizes.num_tokens, next(seeds)))
        for sample in samples:
            assert len(sample.token_ids) == sizes.num_tokens, sample.error
            assert len(sample.scores["rule"].p_violate) == len(rules)
        return seconds

    def passes_after(system: System) -> float:
        prompts = session.work.prompts(sizes.batch_prompts, sizes.prompt_tokens)
        drawn = session.ask(system, {"prompts": prompts, "num_tokens": sizes.num_tokens, "seed": next(seeds)})
        seconds = checked_seconds(drawn, len(prompts), sizes.num_tokens)
        texts = [[*prompt, *completion] for prompt, completion in zip(prompts, drawn["completions"], strict=True)]
        return seconds + float(session.ask(TRANSFORMERS, {"do": "passes", "texts": texts, "passes": passes})["seconds"])

    variants = [session.server(variant) for variant in session.plan.servers]
    ours = [Contender(each.name, partial(rollout, each)) for each in variants]
    rivals = [Contender(f"{system.name}, then transformers passes", partial(passes_after, system)) for system in rivals_of(session)]
    series = session.interleave([*ours, *rivals], has_warm_up=False)  # a round takes minutes, and the median leaves the first out
    leader = best(series[: len(ours)], False) or series[0]
    rest = [each for each in series if each is not leader]
    what = f"experience batch: {sizes.batch_prompts} prompts x {sizes.num_tokens} sampled tokens, 4 roles and {sizes.num_rules} rules"
    check = beats("at least 4x the best", leader, series[len(ours) :], False, 4.0)
    absent = [system.name for system in (TRANSFORMERS, VLLM) if system not in rivals_of(session)]
    notes = tuple(f"{name} was not asked for: the goal is against the better of both" for name in absent)
    return Row("P4", what, "s", False, (leader, *rest), (check,), notes)


def rivals_of(session: Session) -> list[System]:
    """Those that can begin an experience batch."""
    return [system for system in (TRANSFORMERS, VLLM) if system.peer in session.plan.peers]


def roll_out(client: Client, prompts: list[list[int]], rules: list[Rule], num_tokens: int, seed: int) -> list[Sample]:
    """A rollout with everything that a PPO round needs, in one call."""
    return client.generate(
        prompts,
        temperature=1.0,
        seed=seed,
        max_new_tokens=num_tokens,
        ignore_eos=True,
        score=list(SCORED_ROLES),
        rules=rules,
    )
