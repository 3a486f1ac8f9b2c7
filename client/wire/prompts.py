"""What a prompt may be, and how each form goes over the wire. Sends nothing.

"text"                                      plain text, tokenised with the tokenizer's special tokens
[504, 2365, 6354]                           token ids, used as they are (a 1-D numpy array or torch tensor, too)
[{"role": "user", "content": "Hi"}]         a conversation, rendered with the checkpoint's chat template, or in a transcript format
continue_from(sample, [{"role": ...}])      an earlier sample and the turns that follow; nothing is tokenised again
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from polyhead.client.errors import InvalidArgument
from polyhead.client.results.results import Sample, ScoredItem
from polyhead.client.wire.text_check import lone_surrogate
from polyhead.v1 import types_pb2

__all__ = ["Continuation", "Message", "Prompt", "PromptForm", "continue_from", "prompt_list", "prompt_message", "token_ids"]

Message = Mapping[str, str]  # {"role": "user", "content": "Hi"}
_FORMS = "a str, a list of token ids, a list of {'role', 'content'} messages, or continue_from(...)"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Continuation:
    """A conversation by its exact ids, with the turns that follow: made by `continue_from`, or from ids that were stored."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    messages: tuple[Message, ...]


Prompt = str | Sequence[int] | Sequence[Message] | Continuation | Any  # Any: an array of ids


def continue_from(sample: Sample | ScoredItem, messages: Sequence[Message] = ()) -> Continuation:
    """The conversation after `sample`, with the turns that follow it: its exact ids are used again, so its cache is hit.

    In a transcript format there may be none: the next role's turn, `reply_role=`, is then the one to generate.
    """
    return Continuation(sample.prompt_token_ids, sample.token_ids, tuple(messages))


@dataclass(frozen=True, slots=True)
class PromptForm:
    """What is the same for every prompt of a call."""

    assistant_prefix: str
    cache_salt: str
    format: str
    reply_role: str
    role_prompt: str | None
    allow_control_tokens: bool

    def message(self, prompt: Prompt, field: str) -> types_pb2.Prompt:
        return prompt_message(prompt, field, **dataclasses.asdict(self))


def prompt_list(prompts: Sequence[Prompt], field: str = "prompts") -> Sequence[Prompt]:
    """`prompts` if it is a list of prompts; one single prompt in its place is a TypeError, not a list of letters."""
    if isinstance(prompts, (str, bytes, bytearray, memoryview, Continuation)) or not isinstance(prompts, Sequence):
        raise TypeError(f"{field} must be a list of prompts: {type(prompts).__name__}\nhint: write [prompt] for a single one")
    if not prompts:
        raise InvalidArgument(f"{field} is empty", field=field)
    if isinstance(prompts[0], (int, Mapping)):
        one = "one list of token ids" if isinstance(prompts[0], int) else "one conversation"
        raise TypeError(f"{field} must be a list of prompts: {one}\nhint: write [prompt] for a single one")
    return prompts


def prompt_message(
    prompt: Prompt,
    field: str,
    *,
    assistant_prefix: str = "",
    cache_salt: str = "",
    format: str = "",
    reply_role: str = "",
    role_prompt: str | None = None,
    allow_control_tokens: bool = False,
) -> types_pb2.Prompt:
    """One prompt as a message. `field` names it in errors. TypeError for another form, InvalidArgument if empty or no Unicode text."""
    form: Any = {"assistant_prefix": assistant_prefix, "cache_salt": cache_salt, "format": format, "reply_role": reply_role}
    form |= {"role_prompt": role_prompt, "allow_control_tokens": allow_control_tokens}
    try:
        return _prompt_message(prompt, field, types_pb2.Prompt(**form))
    except UnicodeEncodeError:
        raise lone_surrogate(**{field: prompt, **form}) from None


def _prompt_message(prompt: Prompt, field: str, message: types_pb2.Prompt) -> types_pb2.Prompt:
    """`message` holds what is the same for every prompt of a call."""
    roles = () if message.format else _ROLES  # a format's roles are known to the server alone
    if isinstance(prompt, str):
        message.text = prompt
    elif isinstance(prompt, Continuation):
        turns = _messages(prompt.messages, f"{field}.messages", roles)
        source = types_pb2.Continuation(prompt_token_ids=prompt.prompt_token_ids, token_ids=prompt.token_ids, messages=turns)
        message.continue_from.CopyFrom(source)
    elif isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
        message.chat.CopyFrom(types_pb2.Chat(messages=_messages(cast(Sequence[Message], prompt), field, roles)))
    else:
        message.token_ids.CopyFrom(types_pb2.TokenIds(ids=token_ids(prompt, field, forms=_FORMS)))
    return message


def token_ids(value: Any, field: str, *, forms: str = "a list of token ids") -> list[int]:
    """A sequence or 1-D array of ids as a list. TypeError naming `field`; InvalidArgument if empty or out of range.

    Bytes are refused: as a sequence of numbers they would be taken for ids.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"{field} must be {forms}: {type(value).__name__}\nhint: bytes of a text become one by .decode()")
    plain = value.tolist() if hasattr(value, "tolist") else value  # numpy, torch
    if isinstance(plain, str) or not isinstance(plain, Sequence):
        raise TypeError(f"{field} must be {forms}: {type(value).__name__}")
    if not plain:
        raise InvalidArgument(f"{field} is empty", field=field)
    ids = [each if type(each) is int else _integer(each, field, forms) for each in plain]
    if min(ids) < 0 or max(ids) >= 1 << 32:
        raise InvalidArgument(
            f"{field} holds a number that is no token id: {min(ids) if min(ids) < 0 else max(ids)}", field=field
        )
    return ids


def _integer(value: Any, field: str, forms: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{field} must be {forms}: it holds a {type(value).__name__}")
    return int(value)


def _messages(messages: Sequence[Message], field: str, roles: Sequence[str]) -> list[types_pb2.ChatMessage]:
    return [_chat_message(message, f"{field}[{index}]", roles) for index, message in enumerate(messages)]


def _chat_message(message: Message, field: str, roles: Sequence[str]) -> types_pb2.ChatMessage:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        keys = sorted(message) if isinstance(message, Mapping) else type(message).__name__
        raise TypeError(f"{field} must be a message with exactly the keys 'role' and 'content': {keys}")
    for key in ("role", "content"):
        if not isinstance(message[key], str):
            raise TypeError(f"{field}[{key!r}] must be a str: {type(message[key]).__name__}")
    if roles and message["role"] not in roles:
        raise InvalidArgument(f"{field}['role'] must be one of {', '.join(roles)}: {message['role'][:40]!r}", field=field)
    return types_pb2.ChatMessage(role=message["role"], content=message["content"])
