"""What the keyword arguments of the larger calls mean: their defaults, units and ranges, as help() shows them. Declared in options.py."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["COPYING", "DRAWING", "PUSHING", "SCORING", "described"]

DRAWING = """InvalidArgument: `field` names the argument.
NotFound: an unknown head, recipe, rule, format or fit.
FailedPrecondition: what this model lacks, such as a chat template.
ResourceExhausted: the queue is full, after some retries.
Unavailable, DeadlineExceeded, Unauthenticated.
A sample that ends early raises nothing: its `finish_reason` is ABORTED or FAILED, and `error` says why."""
SCORING = f"""{DRAWING.rpartition(chr(10))[0]}
An item that cannot be scored raises nothing: its `error` says why."""
PUSHING = """InvalidArgument: `field` names the argument or the tensor.
FailedPrecondition: the weights do not fit this trunk.
ResourceExhausted: the disk is full, or many pushes are under way.
AlreadyExists: the request_id was used for another push.
Unavailable, DeadlineExceeded, Unauthenticated, PermissionDenied."""
COPYING = """InvalidArgument: `field` names the argument.
NotFound: an unknown source.
FailedPrecondition: the target's kind has another output than the source.
Unavailable, DeadlineExceeded, Unauthenticated, PermissionDenied."""

_DEFAULTS = {"bool": False, "int": 0, "str": "", "Sequence[str]": ()}  # by type; the others are None

F = TypeVar("F", bound=Callable[..., Any])

_TEXTS = {
    "temperature": "from 0, greedy, to 100. Default: 1, the model's own distribution.",
    "top_p": "in (0, 1]: draw from the likeliest tokens whose probabilities sum to this. Default: 1, all.",
    "top_k": "draw from this many of the likeliest tokens. Default: 0, all.",
    "min_p": "in [0, 1]: draw from tokens with at least this share of the likeliest one's probability. Default: 0, all.",
    "repetition_penalty": "in [0.01, 10]: above 1, tokens of the prompt and the reply so far become less likely. Default: 1.",
    "seed": "of the random draws, 64 bits. Default: chosen by the server, and returned with each sample.",
    "max_new_tokens": "tokens of a reply, at most. Default: 128.",
    "stop": "a string or up to 16 that end a sample. Default: none, or what ends a reply in the transcript format.",
    "keep_stop": "keep the matched stop string in `text`. Default: False.",
    "stop_token_ids": "up to 64 ids that end a sample, beside the model's own end of sequence. Default: none.",
    "ignore_eos": "continue after an end of sequence. Default: False.",
    "sample_seeds": "the `sample_seed` of earlier samples, to draw them again: one for each sample of each prompt. Default: none.",
    "head": 'the head that generates: "policy", the active version, or "policy@7". Default: "policy".',
    "n": "samples for each prompt. Default: 1.",
    "arms": "several heads in one call, in place of head= and n=: Arm or {'head', 'n', sampling parameters}. Default: none.",
    "delivery": '"samples" as they finish or "groups", each prompt\'s at once. Default: "samples"; with best= "groups".',
    "best": "with recipe=: return only this many of each prompt's samples, the best ones. Default: all.",
    "median": "with best=: also return the sample in the middle of the ranking. Default: False.",
    "score": "heads to score each finished sample with, such as ['reference', 'value']. Default: none.",
    "return_states": "also return the trunk's output for prompt and reply: (tokens, d_model) float32. Default: False.",
    "rules": "ids of the rule set, or rules by text, for heads of kind rule. Default: none, or all of rule_set=.",
    "rule_set": 'which set the ids belong to: "example-rules" or "example-rules@1". Default: the server\'s own.',
    "recipe": 'composes a reward, "sparrow" or "sparrow@1"; the heads that it reads need not be in score= or heads=. Default: none.',
    "recipe_constants": "values by name that replace the recipe's own. Default: as in the recipe's file.",
    "entropy": "policy heads also return the entropy at every token of the completion, in nats. Default: False.",
    "top_logprobs": "policy heads also return this many of the likeliest tokens at every token of the completion, at most 20. Default: 0.",
    "ood": 'the out-of-distribution fit that scores the prompt: "helpful" or "helpful@2". Default: none.',
    "terminated": "whether completions ended by themselves: one bool, or one for each. Default: whether their last token ends a sequence.",
    "on_swap": 'if heads change meanwhile: "pin" the versions, "abort", or "follow" the new policy. Default: "pin".',
    "priority": '"interactive" goes before "batch". Default: "batch".',
    "timeout": "seconds for the whole call, queue and retries included. Default: the client's.",
    "request_id": "names the call; a change that is sent twice under one id is made once. Default: a new one.",
    "assistant_prefix": "a text that opens the reply. Default: none.",
    "format": 'transcript format, "sparrow" or "sparrow@1": how turns are written and replies checked. Default: the chat template.',
    "reply_role": "whose turn the reply is. Default: the format's own choice.",
    "role_prompt": "goes before a conversation's first turn; \"\" for none. Default: the format's own.",
    "allow_control_tokens": "control tokens such as <|im_end|> in messages count as tokens; by default they are text. Default: False.",
    "cache_salt": "requests with different salts never share cached blocks. Default: one salt for all.",
    "generation": "answer with exactly this generation: Unavailable where it is not here yet, FailedPrecondition once it is gone. "
    "Default: 0, the active one.",
    "history_id": "with generation=: its `history_id`, so that it is never another history's of the same number. Default: not compared.",
    "kind": '"policy", "preference", "rule" or "value". Default: as the folder says, else as the base or the name\'s active version.',
    "base": 'the version that it was made from, "policy@3": only tensors that differ are sent; an adapter runs on it. Default: none.',
    "bias": "of a preference or value head: subtracted from the raw number. Default: as in the base or the active version.",
    "scale": "of a preference or value head: what is left after the bias is divided by it. Default: as in the base or the active version.",
    "read": 'which token a preference head reads: "last", "eos" or "append". Default: as in the base or the active version.',
    "append_token_id": 'with read="append": the token that is put behind the completion. Default: as in the base or the active version.',
    "pad_token_id": 'with read="last": this token is passed over at the end; -1: none. Default: as in the base or the active version.',
    "unfinished": 'of a preference head, for samples cut off: "read_last" or "omit". Default: as in the base or the active version.',
    "violated_token_id": "of a rule head: the answer that says that the rule was broken. Default: as in the base or the active version.",
    "followed_token_id": "of a rule head: the other answer. Default: as in the base or the active version.",
    "template": "of a rule head: the rule template that it was trained with. Default: as in the base or the active version.",
    "precision": "of the trunk that it was trained on. Default: the server's.",
    "lora": "what the adapter's adapter_config.json says, where the weights are tensors of a LoRA adapter. Default: the folder's.",
    "metrics": 'what its trainer measured, {"loss": 0.31}: stored and listed. Default: none.',
    "labels": "keep the version whatever the server's keep_versions says. Default: none.",
    "validate_only": "check everything and store nothing. Default: False.",
    "progress": "called after each chunk with (bytes sent, bytes in all). Default: none.",
}  # fmt: skip


def described(options: type, errors: str) -> Callable[[F], F]:
    """Of a method that takes these **options: its signature lists them, and its docstring describes them and what it raises."""

    def describe(method: F) -> F:
        signature = inspect.signature(method)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {each.name for each in own}
        added = [_parameter(name, annotation) for name, annotation in options.__annotations__.items() if name not in taken]
        method.__signature__ = signature.replace(parameters=own + added)  # type: ignore[attr-defined]  # what help() reads
        lines = [inspect.cleandoc(method.__doc__ or ""), "", "Raises", "    TypeError: an unknown option, or a wrong type."]
        lines += [f"    {line}" for line in errors.splitlines()]
        lines += ["", "Options", *(f"    {each.name}: {_TEXTS.get(each.name, '')}" for each in added)]
        method.__doc__ = "\n".join(lines)
        return method

    return describe


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    text = str(getattr(annotation, "__forward_arg__", annotation))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(text), annotation=text)
