"""Requests for generations, built from what the user gave and checked before anything is sent. Shared by both clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from polyhead.client.errors import InvalidArgument
from polyhead.client.wire import prompts as prompt_forms
from polyhead.client.wire.options import Arm, GenerateOptions, Rule, SamplingOptions, StreamOptions
from polyhead.client.wire.request_fields import count, enum_number, generation_number
from polyhead.client.wire.scoring_spec import sampling as sampling_message
from polyhead.client.wire.scoring_spec import scoring_spec, with_details
from polyhead.client.wire.text_check import names_bad_text
from polyhead.client.wire.unknown_options import refuse_unknown
from polyhead.v1 import generation_pb2, types_pb2

__all__ = ["generate", "stream"]


@names_bad_text
def generate(
    prompts: Sequence[prompt_forms.Prompt],
    *,
    field: str = "prompts",
    head: str | None = None,
    n: int | None = None,
    arms: Sequence[Arm | Mapping[str, Any]] | None = None,
    delivery: str | None = None,
    best: int | None = None,
    median: bool = False,
    score: Sequence[str] | None = None,
    rules: Sequence[str | Rule | Mapping[str, str]] | None = None,
    rule_set: str = "",
    recipe: str = "",
    recipe_constants: Mapping[str, float] | None = None,
    entropy: bool = False,
    top_logprobs: int = 0,
    ood: str = "",
    on_swap: str | None = None,
    priority: str | None = None,
    return_states: bool = False,
    assistant_prefix: str = "",
    cache_salt: str = "",
    format: str = "",
    reply_role: str = "",
    role_prompt: str | None = None,
    allow_control_tokens: bool = False,
    generation: int = 0,
    history_id: str = "",
    request_id: str = "",
    timeout: float | None = None,  # read by the caller
    **sampling: Any,
) -> generation_pb2.GenerateRequest:
    """Raises TypeError or InvalidArgument, naming the argument. An unknown keyword is a TypeError."""
    refuse_unknown(sampling, GenerateOptions.__annotations__, "generate()")
    form = prompt_forms.PromptForm(assistant_prefix, cache_salt, format, reply_role, role_prompt, allow_control_tokens)
    spec = scoring_spec(score or (), rules, rule_set, recipe, "score", ood)
    delivery = delivery or ("samples" if best is None else "groups")
    return generation_pb2.GenerateRequest(
        prompts=[
            form.message(prompt, field if field == "prompt" else f"{field}[{i}]")
            for i, prompt in enumerate(prompt_forms.prompt_list(prompts, field))
        ],
        arms=_arms(head, n, arms, cast(SamplingOptions, sampling)),
        delivery=cast(Any, enum_number(generation_pb2.Delivery, delivery, "delivery")),
        on_swap=cast(Any, enum_number(types_pb2.OnSwap, on_swap, "on_swap")),
        priority=cast(Any, enum_number(types_pb2.Priority, priority, "priority")),
        score=with_details(spec, recipe_constants, entropy, top_logprobs),
        select=_selection(best, median, recipe),
        return_states=return_states,
        prompt_states_once=return_states,
        generation=generation_number(generation, "generation") or 0,
        history_id=history_id,
        request_id=request_id,
    )


def stream(prompt: prompt_forms.Prompt, **options: Any) -> generation_pb2.GenerateRequest:
    """One sample of one prompt, piece by piece. Raises as `generate`."""
    refuse_unknown(options, StreamOptions.__annotations__, "stream()")
    return generate([prompt], field="prompt", n=1, delivery="tokens", **options)


def _arms(
    head: str | None, n: int | None, arms: Sequence[Arm | Mapping[str, Any]] | None, sampling: SamplingOptions
) -> list[generation_pb2.Arm]:
    if arms is None:
        return [generation_pb2.Arm(head=head or "", n=1 if n is None else count(n, "n"), sampling=sampling_message(sampling))]
    if head is not None or n is not None:
        raise InvalidArgument("arms= stands in place of head= and n=: give one or the other", field="arms")
    return [_arm(each, sampling, f"arms[{i}]") for i, each in enumerate(arms)]


def _arm(given: Arm | Mapping[str, Any], sampling: SamplingOptions, field: str) -> generation_pb2.Arm:
    if isinstance(given, Mapping):
        own = {key: value for key, value in given.items() if key not in ("head", "n")}
        refuse_unknown(own, ["head", "n", *SamplingOptions.__annotations__], field)
        given = Arm(given.get("head", "policy"), given.get("n", 1), cast(SamplingOptions, own))
    merged = cast(SamplingOptions, {**sampling, **(given.sampling or {})})
    return generation_pb2.Arm(head=given.head, n=count(given.n, f"{field}.n"), sampling=sampling_message(merged, f"{field}."))


def _selection(best: int | None, median: bool, recipe: str) -> generation_pb2.Selection | None:
    if best is None:
        if median:
            raise InvalidArgument("median= needs best=", field="median")
        return None
    if not recipe:
        raise InvalidArgument("best needs a recipe= to rank by", field="best")
    return generation_pb2.Selection(top=count(best, "best"), median=median)
