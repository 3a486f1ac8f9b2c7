"""Prompts and completions, from protobuf to token ids, whichever way they were given. Errors name the field."""

from __future__ import annotations

from collections.abc import Iterable

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.text.replies import ReplyForm, split_marker
from polyhead.server.text.transcripts import Role, TranscriptFormat
from polyhead.v1 import scoring_pb2, types_pb2


def prompt_ids(prompt: types_pb2.Prompt, context: RequestContext, field: str) -> list[int]:
    """The token ids of a prompt, whichever way it was given, all of them the model's. Raises InvalidArgument naming the field."""
    return context.tokenizer.check_ids(written_ids(prompt, context, field), f"{field}.{prompt.WhichOneof('source')}")


def written_ids(prompt: types_pb2.Prompt, context: RequestContext, field: str) -> list[int]:
    """The same as the tokenizer writes them, perhaps with tokens that the model does not have."""
    if len(prompt.cache_salt) > 256:
        raise InvalidArgument("cache_salt is longer than 256 characters", field=f"{field}.cache_salt")
    transcript = _transcript(prompt, context, field)
    match prompt.WhichOneof("source"):
        case "text":
            if not prompt.text:
                raise InvalidArgument("the prompt is empty", field=f"{field}.text")
            ids = context.tokenizer.encode(prompt.text)
        case "token_ids":
            ids = checked_ids(prompt.token_ids.ids, context.vocab_size, f"{field}.token_ids.ids")
        case "chat" if transcript is not None:
            ids = _transcript_ids(prompt, *transcript, context, field)
        case "chat":
            messages = _messages(prompt.chat.messages)
            ids = context.tokenizer.encode_chat(messages, f"{field}.chat.messages", prompt.allow_control_tokens)
        case "continue_from":
            ids = _continuation_ids(prompt, transcript, context, f"{field}.continue_from")
        case _:
            raise InvalidArgument("the prompt is not set: give text, token_ids, chat or continue_from", field=field)
    if prompt.assistant_prefix:
        ids = ids + context.tokenizer.encode_after(ids, prompt.assistant_prefix, f"{field}.assistant_prefix")
    if not ids:
        raise InvalidArgument("the prompt has no tokens", field=field)
    return ids


def reply_form(prompt: types_pb2.Prompt, context: RequestContext, field: str) -> ReplyForm:
    """What the reply to a prompt is checked against."""
    transcript = _transcript(prompt, context, field)
    if transcript is None:
        is_rendered = prompt.WhichOneof("source") in ("chat", "continue_from")
        return ReplyForm(stop_ids=_turn_ends(context) if is_rendered else frozenset())
    transcript_format, reply = transcript
    return ReplyForm(transcript_format.reference, reply.ends, transcript_format.openings)


def _turn_ends(context: RequestContext) -> frozenset[int]:
    """With what the chat template ends a reply, where the model's EOS ids do not say so."""
    end = context.tokenizer.turn_end_id
    return frozenset() if end is None or end >= context.vocab_size else frozenset({end}) - context.eos_ids


def completion_ids(item: scoring_pb2.ScoreItem, prompt: list[int], context: RequestContext, field: str) -> list[int]:
    """The token ids of a completion; a text is written so that it continues the prompt. Raises InvalidArgument naming the field."""
    match item.WhichOneof("completion"):
        case "text":
            ids = context.tokenizer.encode_after(prompt, item.text, f"{field}.text")
            if not ids:
                raise InvalidArgument("the completion is empty", field=f"{field}.text")
            return ids
        case "token_ids":
            return checked_ids(item.token_ids.ids, context.vocab_size, f"{field}.token_ids.ids")
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


def _transcript(prompt: types_pb2.Prompt, context: RequestContext, field: str) -> tuple[TranscriptFormat, Role] | None:
    """A prompt's format and the role of its reply; None for the chat template."""
    if not prompt.format:
        for name, is_given in (("reply_role", bool(prompt.reply_role)), ("role_prompt", prompt.HasField("role_prompt"))):
            if is_given:
                raise InvalidArgument(f"{name} belongs to a transcript format: name one", field=f"{field}.{name}")
        return None
    transcript_format = context.formats.find(prompt.format, f"{field}.format")
    reply = transcript_format.reply_role(prompt.reply_role, f"{field}.reply_role")
    source = prompt.WhichOneof("source")
    if source != "chat" and prompt.HasField("role_prompt"):
        raise InvalidArgument("only a conversation from its first turn on (chat) takes a role prompt", field=f"{field}.role_prompt")
    if source in ("chat", "continue_from") and transcript_format.find_opening(reply.opening + prompt.assistant_prefix, 1) >= 0:
        raise InvalidArgument("the prefix opens a turn of its own: choose it with reply_role", field=f"{field}.assistant_prefix")
    return transcript_format, reply


def _transcript_ids(
    prompt: types_pb2.Prompt, transcript_format: TranscriptFormat, reply: Role, context: RequestContext, field: str
) -> list[int]:
    if not prompt.chat.messages:
        raise InvalidArgument("no messages", field=f"{field}.chat.messages")
    messages, field = _messages(prompt.chat.messages), f"{field}.chat.messages"
    turns = transcript_format.written(messages, reply, field)  # checked as they were sent
    role_prompt = prompt.role_prompt if prompt.HasField("role_prompt") else reply.prompt
    messages, breaker = context.tokenizer.guarded(messages, prompt.allow_control_tokens)
    if breaker:
        turns = transcript_format.written(messages, reply, field)
    return context.tokenizer.encode_transcript(role_prompt + turns, breaker, field)


def _continuation_ids(
    prompt: types_pb2.Prompt, transcript: tuple[TranscriptFormat, Role] | None, context: RequestContext, field: str
) -> list[int]:
    continuation = prompt.continue_from
    before = checked_ids(continuation.prompt_token_ids, context.vocab_size, f"{field}.prompt_token_ids")
    sampled = checked_ids(continuation.token_ids, context.vocab_size, f"{field}.token_ids")
    messages = _messages(continuation.messages)
    if transcript is not None:
        if not messages and not prompt.reply_role:
            raise InvalidArgument("no messages: name reply_role if the next turn is to be generated", field=f"{field}.messages")
        is_live = prompt.allow_control_tokens
        return [*before, *_continued_transcript(before, sampled, messages, *transcript, context, field, allow_control_tokens=is_live)]
    following = context.tokenizer.encode_next_turns(
        messages, sampled[-1], context.eos_ids, f"{field}.messages", prompt.allow_control_tokens
    )
    return [*before, *sampled, *following]


def _continued_transcript(
    before: list[int],
    sampled: list[int],
    messages: list[dict[str, str]],
    transcript_format: TranscriptFormat,
    reply: Role,
    context: RequestContext,
    field: str,
    allow_control_tokens: bool,
) -> list[int]:
    """The sampled reply and the turns that follow it, as one transcript.

    The reply's marker is the start of the next turn, and is not written twice. If another role speaks next than the marker says, or if its
    last token holds text beyond it, the tokens at fault are written anew: what follows is the caller's to say.
    """
    sampled = context.tokenizer.without_end(sampled)
    text, _ = split_marker(sampled, transcript_format.openings, context.tokenizer.decode_after(before))
    turns = transcript_format.written(messages, reply, f"{field}.messages")
    following = next(opening for opening in transcript_format.openings if turns.startswith(opening))
    transcript_format.check_closed(text, 0, following, f"{field}.token_ids")
    return context.tokenizer.encode_from(before, sampled, text + turns, f"{field}.messages", allow_control_tokens)


def _messages(messages: Iterable[types_pb2.ChatMessage]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
