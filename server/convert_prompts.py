"""Prompts and completions, from protobuf to token ids, whichever way they were given. Errors name the field."""

from __future__ import annotations

from collections.abc import Iterable

from polyhead.heads.errors import InvalidArgument
from polyhead.server.door import Door
from polyhead.v1 import scoring_pb2, types_pb2


def prompt_ids(prompt: types_pb2.Prompt, door: Door, field: str) -> list[int]:
    """The token ids of a prompt, whichever way it was given. Raises InvalidArgument naming the field."""
    if len(prompt.cache_salt) > 256:
        raise InvalidArgument("cache_salt is longer than 256 characters", field=f"{field}.cache_salt")
    match prompt.WhichOneof("source"):
        case "text":
            if not prompt.text:
                raise InvalidArgument("the prompt is empty", field=f"{field}.text")
            ids = door.tokenizer.encode(prompt.text)
        case "token_ids":
            ids = checked_ids(prompt.token_ids.ids, door.vocab_size, f"{field}.token_ids.ids")
        case "chat":
            ids = door.tokenizer.encode_chat(_messages(prompt.chat.messages), f"{field}.chat.messages")
        case "continue_from":
            ids = _continuation_ids(prompt.continue_from, door, f"{field}.continue_from")
        case _:
            raise InvalidArgument("the prompt is not set: give text, token_ids, chat or continue_from", field=field)
    if prompt.assistant_prefix:
        ids = ids + door.tokenizer.encode(prompt.assistant_prefix, special_tokens=False)
    if not ids:
        raise InvalidArgument("the prompt has no tokens", field=field)
    return ids


def completion_ids(item: scoring_pb2.ScoreItem, door: Door, field: str) -> list[int]:
    match item.WhichOneof("completion"):
        case "text":
            ids = door.tokenizer.encode(item.text, special_tokens=False)
            if not ids:
                raise InvalidArgument("the completion is empty", field=f"{field}.text")
            return ids
        case "token_ids":
            return checked_ids(item.token_ids.ids, door.vocab_size, f"{field}.token_ids.ids")
    raise InvalidArgument("the completion is not set: give text or token_ids", field=field)


def checked_ids(ids: Iterable[int], vocab_size: int, field: str) -> list[int]:
    """Ids as a list. Raises InvalidArgument with the index of the first one outside the vocabulary, or if there are none."""
    ids = list(ids)
    if not ids:
        raise InvalidArgument("no token ids", field=field)
    if max(ids) >= vocab_size:
        index = next(index for index, token in enumerate(ids) if token >= vocab_size)
        raise InvalidArgument(f"token id outside the vocabulary of {vocab_size}: {ids[index]}", field=f"{field}[{index}]")
    return ids


def _continuation_ids(continuation: types_pb2.Continuation, door: Door, field: str) -> list[int]:
    before = checked_ids(continuation.prompt_token_ids, door.vocab_size, f"{field}.prompt_token_ids")
    sampled = checked_ids(continuation.token_ids, door.vocab_size, f"{field}.token_ids")
    following = door.tokenizer.encode_next_turns(_messages(continuation.messages), sampled[-1], door.eos_ids, f"{field}.messages")
    return [*before, *sampled, *following]


def _messages(messages: Iterable[types_pb2.ChatMessage]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
