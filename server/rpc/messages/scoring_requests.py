"""Scoring requests, from protobuf to the engine's dataclasses (answers go back through answers.py)."""

from __future__ import annotations

from dataclasses import dataclass

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.engine.work.request import Priority, Request, Sample
from polyhead.server.rpc import demand
from polyhead.server.rpc.messages import enums
from polyhead.server.rpc.messages.prompts import completion_ids, prompt_ids, reply_form
from polyhead.server.rpc.messages.recipes import plan_reward
from polyhead.server.rpc.messages.reply_sizes import check_score_size
from polyhead.server.rpc.messages.request_parts import MAX_PROMPTS, Work, check_count, check_length, given_sample, new_request
from polyhead.server.rpc.messages.sampling import sampling_params
from polyhead.server.rpc.request_context import CheckRoom, RequestContext
from polyhead.server.rpc.tag import tag_of
from polyhead.server.text.replies import ReplyForm, is_ended
from polyhead.server.text.text_bounds import num_sure_bytes
from polyhead.v1 import scoring_pb2, types_pb2


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
    check_count(len(message.items), MAX_PROMPTS, "items")
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
    request = new_request(message.score, plan, [], message.on_swap, priority, len(message.items), context, request_id)
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
    check_length(len(ids) + len(completion), request, context, field)
    return ids, completion


def _is_terminated(sample: Sample, form: ReplyForm, context: RequestContext) -> bool:
    """Whether a given completion ends as a reply does."""
    ends = context.eos_ids | form.stop_ids
    return sample.completion[-1] in ends or is_ended(sample.completion, form, context.tokenizer.decode_after(sample.prompt))
