"""What generations and scorings have in common on their way to the engine: heads, rules, lengths, states that are held.

Every field is checked before any model work, and an error names the field. Nothing is altered silently.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.engine.work.request import OnSwap, Priority, Request, Sample
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from polyhead.server.rewards.compose import RewardPlan, Selection
from polyhead.server.rpc.messages import enums
from polyhead.server.rpc.messages.recipes import all_heads, check_weights
from polyhead.server.rpc.messages.rule_questions import rule_questions
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.rpc.tag import Tag
from polyhead.v1 import types_pb2

MAX_PROMPTS = 1024
MAX_HEADS = 16
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Work:
    """A checked call: what the engine runs, and what becomes of the samples that come out."""

    request: Request
    plan: RewardPlan | None  # None: no recipe
    by_group: bool = False  # a prompt's samples leave together
    selection: Selection | None = None  # None: all of them
    prompt_states_once: bool = False  # a prompt's states leave with one of its samples


def new_request(
    spec: types_pb2.ScoringSpec,
    plan: RewardPlan | None,
    sampling_heads: list[str],
    on_swap: types_pb2.OnSwap,
    priority: Priority,
    num_samples: int,
    context: RequestContext,
    request_id: str,
) -> Request:
    """A request without samples: its heads resolved, those of its recipe added, its rules worded."""
    score_heads = all_heads(spec, plan)
    if len(score_heads) > MAX_HEADS:
        added = ", with those that the recipe reads" if len(score_heads) > len(spec.heads) else ""
        raise InvalidArgument(f"too many heads: {len(score_heads)}{added}, at most {MAX_HEADS}", field="score.heads")
    scoring = [context.resolve(name, f"score.heads[{index}]") for index, name in enumerate(score_heads)]
    if len(set(score_heads)) != len(score_heads):
        raise InvalidArgument("a head is named twice", field="score.heads")
    _check_distributions(spec, scoring, context)
    rules = rule_questions(spec, scoring, priority, num_samples, context, are_idle=plan is not None and plan.has_idle_rules)
    if plan is not None:
        check_weights(plan, rules)
    names = dict.fromkeys([*sampling_heads, *score_heads])
    ood = context.find_ood(spec.ood, "score.ood") if spec.ood else None
    return Request(
        request_id=request_id,
        deliver=_undeliverable,
        head_kinds={name: context.resolve(name, "head").manifest.kind for name in names},
        pinned={name: context.resolve(name, "head") for name in names if "@" in name or context.named is not None},
        named_generation=(context.named.number, context.named.history_id) if context.named is not None else None,
        score_heads=tuple(score_heads),
        rules=rules,
        with_entropy=spec.entropy,
        num_top=spec.top_logprobs,
        on_swap=enums.ON_SWAPS.member_or(on_swap, "on_swap", OnSwap.PIN),
        priority=priority,
        pooling=ood.pooling if ood else None,
        tag=Tag(ood=ood),
    )


def _check_distributions(spec: types_pb2.ScoringSpec, scoring: list[ServedHead], context: RequestContext) -> None:
    most = min(MAX_TOP_LOGPROBS, context.vocab_size)
    if spec.top_logprobs > most:
        raise InvalidArgument(f"top_logprobs must lie between 0 and {most}: {spec.top_logprobs}", field="score.top_logprobs")
    asked = "entropy" if spec.entropy else "top_logprobs" if spec.top_logprobs else ""
    if asked and not any(head.manifest.kind is HeadKind.POLICY for head in scoring):
        raise InvalidArgument(f"{asked} needs a head of kind policy, and none is named", field=f"score.{asked}")


def _undeliverable(request: Request, events: object) -> None:
    raise AssertionError("the servicer sets `deliver` before it submits")


def given_sample(request: Request, index: int, prompt: list[int], completion: list[int], salt: str = "") -> Sample:
    """A sample whose completion is known."""
    sample = Sample(request, index, 0, 0, prompt, TokenSequence([*prompt, *completion], salt), SamplingParams())
    sample.completion = completion
    sample.finish_reason = FinishReason.GIVEN
    return sample


def check_held_states(request: Request, context: RequestContext, field: str) -> None:
    """The states that leave together must fit what may wait to be read: those of a sample, or of a prompt's group."""
    if not request.return_states:
        return
    groups: collections.Counter[int] = collections.Counter()
    for index, sample in enumerate(request.samples):
        groups[sample.prompt_index if request.holds_groups else index] += sample.most_tokens
    most = max(groups.values())
    if most > context.max_held_states:
        raise InvalidArgument(
            f"states of {most} tokens would wait together to be read, at most {context.max_held_states} can\n"
            "hint: DELIVERY_SAMPLES, fewer samples, shorter texts, or a server with more unread_bytes",
            field=field,
        )


def check_count(count: int, most: int, field: str) -> None:
    if not 1 <= count <= most:
        raise InvalidArgument(f"between 1 and {most} are allowed: {count}", field=field)


def check_length(num_tokens: int, request: Request, context: RequestContext, field: str) -> None:
    """The longest text that this sample can become, scoring suffixes included, must fit the context."""
    questions = request.rules.by_template.values() if request.rules else ()
    num_suffix = max((len(question.suffix) for template in questions for question in template), default=1)
    num_suffix = num_suffix if request.score_heads else 0
    if num_tokens + num_suffix > context.max_context:
        suffix = f", with {num_suffix} for scoring" if num_suffix else ""
        raise InvalidArgument(
            f"prompt and reply together have {num_tokens} tokens{suffix}; the context holds {context.max_context}", field=field
        )
