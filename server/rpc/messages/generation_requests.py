"""Generation requests, from protobuf to the engine's dataclasses (answers go back through answers.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import DEFAULT_HEAD, HeadKind
from polyhead.server.engine.layers.sampler import sample_seed
from polyhead.server.engine.work.request import Priority, Request, Sample
from polyhead.server.engine.work.sampling import Draws, SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from polyhead.server.rpc import demand
from polyhead.server.rpc.messages import enums
from polyhead.server.rpc.messages.prompts import prompt_ids, reply_form
from polyhead.server.rpc.messages.recipes import plan_reward, selection
from polyhead.server.rpc.messages.reply_sizes import check_group_size, check_sample_size, num_sample_bytes
from polyhead.server.rpc.messages.request_parts import MAX_PROMPTS, Work, check_count, check_held_states, check_length, new_request
from polyhead.server.rpc.messages.sampling import sampling_params
from polyhead.server.rpc.request_context import CheckRoom, RequestContext
from polyhead.server.rpc.tag import tag_of
from polyhead.server.text.replies import ReplyForm
from polyhead.server.text.text_bounds import num_sure_bytes
from polyhead.v1 import generation_pb2, types_pb2

MAX_SAMPLES_PER_ARM = 64
MAX_ARMS = 16
MAX_SAMPLES = 4096
MAX_STATES_TOKENS = 1 << 18  # of one request


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
    request = new_request(message.score, plan, sampling_heads, message.on_swap, priority, num_samples, context, request_id)
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
    check_count(len(message.prompts), MAX_PROMPTS, "prompts")
    arms = list(message.arms) or [generation_pb2.Arm()]
    check_count(len(arms), MAX_ARMS, "arms")
    _check_numbers(message.prompt_indices, len(message.prompts), 1 << 32, "prompt_indices")
    numbers = [arm.index if arm.HasField("index") else place for place, arm in enumerate(arms)]
    _check_numbers(numbers, len(arms), MAX_SAMPLES_PER_ARM, "arms.index")
    return [(arm, _arm_params(arm, f"arms[{index}]", context)) for index, arm in enumerate(arms)]


def _prompt_of(prompt: types_pb2.Prompt, most_new: int, request: Request, context: RequestContext, field: str) -> _Prompt:
    ids = prompt_ids(prompt, context, field)
    check_length(len(ids) + most_new, request, context, field)
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


def _delivery(message: generation_pb2.GenerateRequest, num_samples: int) -> generation_pb2.Delivery:
    if message.HasField("select"):
        return generation_pb2.DELIVERY_GROUPS
    if message.delivery == generation_pb2.DELIVERY_UNSPECIFIED:
        return generation_pb2.DELIVERY_TOKENS if num_samples == 1 else generation_pb2.DELIVERY_SAMPLES
    if message.delivery not in generation_pb2.Delivery.values():
        raise InvalidArgument(f"unknown delivery: {int(message.delivery)}", field="delivery")
    return message.delivery
