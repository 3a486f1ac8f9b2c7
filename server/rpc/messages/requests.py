"""Generation and scoring requests, from protobuf to the engine's dataclasses (answers go back through answers.py).

Every field is checked before any model work, and an error names the field. Nothing is altered silently.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import DEFAULT_HEAD, HeadKind
from polyhead.server.engine.layers.sampler import sample_seed
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.engine.work.questions import RuleQuestion, RuleQuestions
from polyhead.server.engine.work.request import OnSwap, Priority, Request, Sample
from polyhead.server.engine.work.sampling import Draws, FinishReason, SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from polyhead.server.rewards.compose import RewardPlan, Selection
from polyhead.server.rpc import demand
from polyhead.server.rpc.messages import enums
from polyhead.server.rpc.messages.prompts import completion_ids, prompt_ids, reply_form
from polyhead.server.rpc.messages.recipes import all_heads, check_weights, plan_reward, selection
from polyhead.server.rpc.messages.reply_sizes import check_group_size, check_sample_size, check_score_size, num_sample_bytes
from polyhead.server.rpc.messages.rules import selected_rules
from polyhead.server.rpc.messages.sampling import sampling_params
from polyhead.server.rpc.request_context import CheckRoom, RequestContext
from polyhead.server.rpc.tag import Tag, tag_of
from polyhead.server.text.replies import ReplyForm, is_ended
from polyhead.server.text.text_bounds import num_sure_bytes
from polyhead.v1 import generation_pb2, scoring_pb2, types_pb2

MAX_PROMPTS = 1024
MAX_SAMPLES_PER_ARM = 64
MAX_ARMS = 16
MAX_SAMPLES = 4096
MAX_HEADS = 16
MAX_TOP_LOGPROBS = 20
MAX_STATES_TOKENS = 1 << 18  # of one request


@dataclass(frozen=True, slots=True)
class Work:
    """A checked call: what the engine runs, and what becomes of the samples that come out."""

    request: Request
    plan: RewardPlan | None  # None: no recipe
    by_group: bool = False  # a prompt's samples leave together
    selection: Selection | None = None  # None: all of them
    prompt_states_once: bool = False  # a prompt's states leave with one of its samples


@dataclass(frozen=True, slots=True)
class CountedGeneration:
    """A generation that was checked by its counts."""

    arms: list[tuple[generation_pb2.Arm, SamplingParams]]
    priority: Priority
    num_samples: int
    num_tokens: int  # that it comes to at least
    draws: Draws
    delivery: generation_pb2.Delivery

    def check_room(self, check_room: CheckRoom) -> None:
        """Raises ResourceExhausted if the engine would refuse it however it goes on."""
        check_room(self.priority, self.num_tokens, self.draws)


def count_generation(message: generation_pb2.GenerateRequest, context: RequestContext) -> CountedGeneration:
    """Check what needs neither a tokenizer nor a head: a call that is refused for its counts costs no more than this."""
    arms = _checked_arms(message, context)
    if context.named is not None and message.on_swap == types_pb2.ON_SWAP_FOLLOW:
        problem = "a request that names its generation cannot follow a swap"
        raise InvalidArgument(f"{problem}\nhint: leave out generation, or use PIN", field="on_swap")
    for index, text in enumerate(message.prompts):
        context.check_text(num_sure_bytes(text), f"prompts[{index}]")
    priority = enums.PRIORITIES.member_or(message.priority, "priority", context.default_priority)
    num_samples = len(message.prompts) * sum(max(1, arm.n) for arm, _ in arms)
    if num_samples > MAX_SAMPLES:
        raise InvalidArgument(f"too many samples in one request: {num_samples}, at most {MAX_SAMPLES}", field="prompts")
    least = [demand.prompt_tokens(prompt) for prompt in message.prompts]
    most_new = max(params.max_new_tokens for _, params in arms)
    for index, length in enumerate(least):
        demand.check_least_length(length + most_new, context.max_context, f"prompts[{index}]")
    delivery = _delivery(message, num_samples)
    draws = Draws(num_samples, arms[0][1], 0 if delivery == generation_pb2.DELIVERY_TOKENS else _num_to_first(arms))
    return CountedGeneration(arms, priority, num_samples, demand.generated_tokens(least, arms), draws, delivery)


def _num_to_first(arms: Sequence[tuple[generation_pb2.Arm, SamplingParams]]) -> int:
    """Tokens that are drawn before the first sample ends; 0 if any may end by itself."""
    return min(params.max_new_tokens if params.draws_all else 0 for _, params in arms)


def generate_request(
    message: generation_pb2.GenerateRequest, context: RequestContext, request_id: str, counted: CountedGeneration | None = None
) -> Work:
    """Check and convert a generation. Blocking: it tokenises, and may load a head version that is not active.

    `counted`: what `count_generation` made of the same message, and for which there was room; None: that comes first.
    """
    if counted is None:
        counted = count_generation(message, context)
        counted.check_room(context.check_room)
    arms, priority, num_samples, delivery = counted.arms, counted.priority, counted.num_samples, counted.delivery
    for index, (arm, _) in enumerate(arms):
        _check_arm_head(arm, f"arms[{index}]", context)
    group_size, most_new = num_samples // len(message.prompts), max(params.max_new_tokens for _, params in arms)
    select = selection(message, group_size)
    plan = plan_reward(message.score, context, is_given=False)
    sampling_heads = list(dict.fromkeys(arm.head or DEFAULT_HEAD for arm, _ in arms))
    request = _request(message.score, plan, sampling_heads, message.on_swap, priority, num_samples, context, request_id)
    request.stream_tokens = delivery == generation_pb2.DELIVERY_TOKENS
    request.return_states = message.return_states
    request.holds_groups = delivery == generation_pb2.DELIVERY_GROUPS or (plan is not None and plan.recipe.averages_samples)
    work = Work(request, plan, delivery == generation_pb2.DELIVERY_GROUPS, select, message.prompt_states_once)
    prompts = [_prompt_of(prompt, most_new, request, context, f"prompts[{index}]") for index, prompt in enumerate(message.prompts)]
    num_tokens = demand.generated_tokens([len(prompt.ids) for prompt in prompts], arms, request.num_suffix_tokens)
    if request.return_states and num_tokens > MAX_STATES_TOKENS:
        raise InvalidArgument(f"states of {num_tokens} tokens, at most {MAX_STATES_TOKENS} in one request", field="return_states")
    shapes = [(prompt.params(given), len(prompt.ids) + given.max_new_tokens) for prompt in prompts for _, given in arms]
    largest = max(num_sample_bytes(request, params, length, plan) for params, length in shapes)
    if work.by_group:
        check_group_size(plan, select, group_size, largest)
    elif request.num_top:
        check_sample_size(largest)
    context.check_room(priority, num_tokens, counted.draws)
    for prompt_index, prompt in zip(message.prompt_indices or range(len(prompts)), prompts, strict=True):
        tag_of(request).forms[prompt_index] = prompt.form
        for arm_index, (arm, params) in enumerate(arms):
            number = arm.index if arm.HasField("index") else arm_index
            request.samples.extend(_samples(request, prompt_index, number, prompt, arm, params, context))
    check_held_states(request, context, "return_states")
    return work


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt, tokenised."""

    ids: list[int]
    salt: str
    form: ReplyForm

    def params(self, given: SamplingParams) -> SamplingParams:
        """As asked for, with what ends a reply of this form."""
        return _with_ends(given, self.form)


def _checked_arms(message: generation_pb2.GenerateRequest, context: RequestContext) -> list[tuple[generation_pb2.Arm, SamplingParams]]:
    """At least one. Their heads are not looked at."""
    _check_count(len(message.prompts), MAX_PROMPTS, "prompts")
    arms = list(message.arms) or [generation_pb2.Arm()]
    _check_count(len(arms), MAX_ARMS, "arms")
    _check_numbers(message.prompt_indices, len(message.prompts), 1 << 32, "prompt_indices")
    numbers = [arm.index if arm.HasField("index") else place for place, arm in enumerate(arms)]
    _check_numbers(numbers, len(arms), MAX_SAMPLES_PER_ARM, "arms.index")
    return [(arm, _arm_params(arm, f"arms[{index}]", context)) for index, arm in enumerate(arms)]


def _prompt_of(prompt: types_pb2.Prompt, most_new: int, request: Request, context: RequestContext, field: str) -> _Prompt:
    ids = prompt_ids(prompt, context, field)
    _check_length(len(ids) + most_new, request, context, field)
    return _Prompt(ids, prompt.cache_salt, reply_form(prompt, context, field))


def _samples(
    request: Request,
    prompt_index: int,
    arm_index: int,
    prompt: _Prompt,
    arm: generation_pb2.Arm,
    given: SamplingParams,
    context: RequestContext,
) -> Iterator[Sample]:
    """Those of one prompt and one arm."""
    params, seeds = prompt.params(given), arm.sampling.sample_seeds
    for place, index in enumerate(arm.sample_indices or range(max(1, arm.n))):
        seed = seeds[place] if seeds else sample_seed(params.seed, prompt_index, arm_index, index)
        sequence = TokenSequence(list(prompt.ids), prompt.salt)
        text = context.tokenizer.stream(params.stop, params.keep_stop, prompt.ids)
        head = arm.head or DEFAULT_HEAD
        yield Sample(
            request, prompt_index, arm_index, index, prompt.ids, sequence, params, head_name=head, seed=seed, text=text
        )


@dataclass(frozen=True, slots=True)
class CountedScoring:
    """A scoring that was checked by its counts."""

    priority: Priority
    num_tokens: int  # that it comes to at least

    def check_room(self, check_room: CheckRoom) -> None:
        """Raises ResourceExhausted if the engine would refuse it however it goes on."""
        check_room(self.priority, self.num_tokens, None)


def count_scoring(message: scoring_pb2.ScoreRequest, context: RequestContext) -> CountedScoring:
    """Check what needs neither a tokenizer nor a head."""
    _check_count(len(message.items), MAX_PROMPTS, "items")
    for index, item in enumerate(message.items):
        context.check_text(num_sure_bytes(item.prompt) + len(item.text.encode("utf-8")), f"items[{index}]")
    if not message.score.heads and not message.score.recipe and not message.score.ood:
        raise InvalidArgument("no head to score with, no recipe, and no out-of-distribution fit", field="score.heads")
    if message.on_swap == types_pb2.ON_SWAP_FOLLOW:
        raise InvalidArgument("on_swap=FOLLOW applies to Generate only\nhint: use PIN or ABORT", field="on_swap")
    priority = enums.PRIORITIES.member_or(message.priority, "priority", context.default_priority)
    least = [demand.item_tokens(item) for item in message.items]
    for index, length in enumerate(least):
        demand.check_least_length(length, context.max_context, f"items[{index}]")
    return CountedScoring(priority, sum(least))


def score_request(
    message: scoring_pb2.ScoreRequest, context: RequestContext, request_id: str, counted: CountedScoring | None = None
) -> Work:
    """Check and convert a scoring of given completions. `counted`: as for `generate_request`."""
    if counted is None:
        counted = count_scoring(message, context)
        counted.check_room(context.check_room)
    priority = counted.priority
    plan = plan_reward(message.score, context, is_given=True)
    request = _request(message.score, plan, [], message.on_swap, priority, len(message.items), context, request_id)
    if message.HasField("sampling"):
        request.score_sampling = sampling_params(message.sampling, "sampling", context)
    texts = [_text_of(item, request, context, f"items[{index}]") for index, item in enumerate(message.items)]
    lengths = [len(ids) + len(completion) for ids, completion in texts]
    check_score_size(request, plan, lengths)
    context.check_room(priority, sum(lengths) + len(lengths) * request.num_suffix_tokens, None)
    for index, (item, (ids, completion)) in enumerate(zip(message.items, texts, strict=True)):
        sample = given_sample(request, index, ids, completion, item.prompt.cache_salt)
        form = tag_of(request).forms[index] = reply_form(item.prompt, context, f"items[{index}].prompt")
        sample.is_terminated = item.terminated if item.HasField("terminated") else _is_terminated(sample, form, context)
        request.samples.append(sample)
    return Work(request, plan)


def _text_of(item: scoring_pb2.ScoreItem, request: Request, context: RequestContext, field: str) -> tuple[list[int], list[int]]:
    """(prompt, completion)"""
    ids = prompt_ids(item.prompt, context, f"{field}.prompt")
    completion = completion_ids(item, ids, context, field)
    _check_length(len(ids) + len(completion), request, context, field)
    return ids, completion


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


def _is_terminated(sample: Sample, form: ReplyForm, context: RequestContext) -> bool:
    """Whether a given completion ends as a reply does."""
    ends = context.eos_ids | form.stop_ids
    return sample.completion[-1] in ends or is_ended(sample.completion, form, context.tokenizer.decode_after(sample.prompt))


def _with_ends(params: SamplingParams, form: ReplyForm) -> SamplingParams:
    """With what ends a reply of this form: the transcript's openings if no stop string is given, the chat template's end of a turn."""
    stop_ids = frozenset() if params.ignore_eos else form.stop_ids
    if params.stop and not stop_ids:
        return params
    return dataclasses.replace(params, stop=params.stop or form.ends, stop_token_ids=params.stop_token_ids | stop_ids)


def _arm_params(arm: generation_pb2.Arm, field: str, context: RequestContext) -> SamplingParams:
    if arm.n > MAX_SAMPLES_PER_ARM:
        raise InvalidArgument(f"n must lie between 1 and {MAX_SAMPLES_PER_ARM}: {arm.n}", field=f"{field}.n")
    if arm.sampling.sample_seeds and len(arm.sampling.sample_seeds) != max(1, arm.n):
        raise InvalidArgument(
            f"{len(arm.sampling.sample_seeds)} sample seeds for n = {max(1, arm.n)}", field=f"{field}.sampling.sample_seeds"
        )
    _check_numbers(arm.sample_indices, max(1, arm.n), MAX_SAMPLES_PER_ARM, f"{field}.sample_indices")
    return sampling_params(arm.sampling, f"{field}.sampling", context)


def _check_numbers(numbers: Sequence[int], count: int, limit: int, field: str) -> None:
    """Of samples, arms or prompts that a call asks for again; none: their places."""
    if numbers and (len(numbers) != count or len(set(numbers)) != count or max(numbers) >= limit):
        raise InvalidArgument(f"{count} different numbers below {limit} are needed: {list(numbers)[:8]}", field=field)


def _check_arm_head(arm: generation_pb2.Arm, field: str, context: RequestContext) -> None:
    reference = arm.head or DEFAULT_HEAD
    head = context.resolve(reference, f"{field}.head")
    if head.manifest.kind is not HeadKind.POLICY:
        raise InvalidArgument(f"{reference} is a {head.manifest.kind.value} head and cannot generate", field=f"{field}.head")


def _request(
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
    rules = _rule_questions(spec, scoring, priority, num_samples, context, are_idle=plan is not None and plan.has_idle_rules)
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


def _rule_questions(
    spec: types_pb2.ScoringSpec,
    scoring: list[ServedHead],
    priority: Priority,
    num_samples: int,
    context: RequestContext,
    *,
    are_idle: bool,
) -> RuleQuestions | None:
    """`are_idle`: rules are given for a part of the recipe whose weight is 0; they are checked, and not asked."""
    rule_heads = [head for head in scoring if head.manifest.kind is HeadKind.RULE]
    selection = spec.rules
    is_given = bool(selection.rule_set or selection.rule_ids or selection.rules)
    if not rule_heads and are_idle:
        selected_rules(selection, context.rules, "score.rules")
        return None
    if bool(rule_heads) != is_given:
        raise _rules_alone(rule_heads)
    if not rule_heads:
        return None
    for head in rule_heads:
        context.rules.check_head(head.reference, head.manifest.template, "score.heads")
        if not head.manifest.has_answers:
            raise FailedPrecondition(
                f"{head.reference} has no answer tokens: its template was not served when it was made\n"
                "hint: copy it to a new version, which takes them from the template",
                field="score.heads",
            )
    reference, rules = selected_rules(selection, context.rules, "score.rules")
    fixed = [context.rules.templates[head.manifest.template] for head in rule_heads]
    num_least = sum(len(template.before) + 1 + len(template.after) for template in fixed)
    context.check_room(priority, num_samples * len(rules) * num_least, None)
    worded = context.rules.suffixes(rules, "score.rules")
    return RuleQuestions(
        reference, {template: tuple(RuleQuestion(*question) for question in questions) for template, questions in worded.items()}
    )


def _rules_alone(rule_heads: list[ServedHead]) -> InvalidArgument:
    """The error for rules without a head of kind rule, or such a head without rules, with the ways to give the other half."""
    if not rule_heads:
        hint = "name one, such as rule; rules are read by heads of kind rule alone"
        return InvalidArgument(f"rules are given, but no head of kind rule is to score\nhint: {hint}", field="score.heads")
    ways = 'some ids, rules=["no-insults"]; a whole set, rule_set="example-rules@1"; or texts of your own'
    message = f"a head of kind rule needs rules to ask about: {rule_heads[0].reference}"
    return InvalidArgument(f"{message}\nhint: give {ways}; `polyhead configurations` lists sets and ids", field="score.rules")


def _delivery(message: generation_pb2.GenerateRequest, num_samples: int) -> generation_pb2.Delivery:
    if message.HasField("select"):
        return generation_pb2.DELIVERY_GROUPS
    if message.delivery == generation_pb2.DELIVERY_UNSPECIFIED:
        return generation_pb2.DELIVERY_TOKENS if num_samples == 1 else generation_pb2.DELIVERY_SAMPLES
    if message.delivery not in generation_pb2.Delivery.values():
        raise InvalidArgument(f"unknown delivery: {int(message.delivery)}", field="delivery")
    return message.delivery


def _check_count(count: int, most: int, field: str) -> None:
    if not 1 <= count <= most:
        raise InvalidArgument(f"between 1 and {most} are allowed: {count}", field=field)


def _check_length(num_tokens: int, request: Request, context: RequestContext, field: str) -> None:
    """The longest text that this sample can become, scoring suffixes included, must fit the context."""
    questions = request.rules.by_template.values() if request.rules else ()
    num_suffix = max((len(question.suffix) for template in questions for question in template), default=1)
    num_suffix = num_suffix if request.score_heads else 0
    if num_tokens + num_suffix > context.max_context:
        suffix = f", with {num_suffix} for scoring" if num_suffix else ""
        raise InvalidArgument(
            f"prompt and reply together have {num_tokens} tokens{suffix}; the context holds {context.max_context}", field=field
        )
