"""Post-processing of finished samples: the reply's check, the out-of-distribution score, the reward, facts for the metrics.

Used by generation and scoring. Knows nothing of messages and delivery.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polyhead.server.engine.schedule.scorer import PreferenceResult, ValueResult, results
from polyhead.server.engine.work.request import Sample
from polyhead.server.metrics.metrics import SampleFacts, Scalar
from polyhead.server.rewards import compose
from polyhead.server.rewards.compose import Reward, RewardPlan
from polyhead.server.rpc.tag import tag_of
from polyhead.server.text.replies import ReplyCheck, check_reply
from polyhead.server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Finished:
    """A sample with its check, reward and rank."""

    sample: Sample
    check: ReplyCheck
    reward: Reward | None = None  # None: no recipe
    rank: int | None = None  # its place in its group; None if the group is not known, or without a recipe


def finish_group(samples: Sequence[Sample], plan: RewardPlan | None, tokenizer: Tokenizer, *, is_whole: bool) -> list[Finished]:
    """Samples of one prompt, in the order given. `is_whole`: these are all of them, so that each has a place among them."""
    checks = [check_reply(sample, tag_of(sample.request).form(sample), tokenizer.decode_after(sample.prompt)) for sample in samples]
    if plan is None:
        return [Finished(sample, check) for sample, check in zip(samples, checks, strict=True)]
    rewards = compose.compose(plan, samples, checks)
    places = {index: place for place, index in enumerate(compose.ranking(rewards))} if is_whole else {}
    found = zip(samples, checks, rewards, strict=True)
    return [Finished(sample, check, reward, places.get(index)) for index, (sample, check, reward) in enumerate(found)]


def score_prompts(samples: Iterable[Sample]) -> None:
    """Out-of-distribution scores of samples that asked for them: d_model^2 work for each prompt, whose samples share one score."""
    for sample in samples:
        tag = tag_of(sample.request)
        if sample.pooled is None or tag.ood is None:
            continue
        if sample.prompt_index not in tag.ood_scores:
            tag.ood_scores[sample.prompt_index] = tag.ood.score(sample.pooled)
        sample.pooled = None


def is_to_score(sample: Sample) -> bool:
    """Whether `score_prompts` has something to do for it."""
    return sample.pooled is not None and tag_of(sample.request).ood is not None


def sample_facts(sample: Sample) -> SampleFacts:
    """What the metrics record of a finished sample."""
    found = results(sample) if sample.is_whole else []
    scalars = [
        Scalar(each.head.name, each.head.version, float(number))
        for each in found
        if (number := _whole_sample_number(each.result)) is not None
    ]
    num_gaps = len(sample.completion) - 1
    has_drawn = sample.first_token_at > 0
    return SampleFacts(
        first_token_s=sample.first_token_at - sample.request.submitted_at if has_drawn else -1.0,
        inter_token_s=(sample.last_token_at - sample.first_token_at) / num_gaps if has_drawn and num_gaps > 0 else -1.0,
        policy=sample.head.reference if sample.head is not None else "",
        scalars=tuple(scalars),
        violations=tuple(rule.p_violate for each in found if isinstance(each.result, tuple) for rule in each.result),
    )


def _whole_sample_number(result: object) -> float | None:
    """A preference, or the value before the first token; None for other results and for a preference that was left out."""
    if isinstance(result, PreferenceResult):
        return result.raw if result.is_present else None
    return float(result.values[0]) if isinstance(result, ValueResult) else None
