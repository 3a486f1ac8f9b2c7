"""How much text one token can stand for, so that a text which must be too long is refused by its bytes, before it is tokenised.

Only where a tokenizer loses nothing: one that drops spaces, or makes one token of a run of unknown characters, has no such bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import pre_tokenizers

from polyhead.heads.format.errors import InvalidArgument
from polyhead.v1 import types_pb2

# What a normalizer can make of so many bytes of text at most: one. Composing a Hangul syllable makes 3 bytes of 9.
_SHRINKS = {"NFC": 3, "NFD": 1, "Prepend": 1}
_KEEPING = frozenset({"ByteLevel", "Metaspace", "Digits"})
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def most_bytes_per_token(tokenizer_json: str) -> int | None:
    """Bytes of UTF-8 text that one token of a `tokenizer.json` can come from, at most; None if there is no bound."""
    parts: dict[str, Any] = json.loads(tokenizer_json)
    shrinks = [_shrink(each) for each in _steps(parts.get("normalizer"), "normalizers")]
    splits = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    model, added = parts["model"], parts.get("added_tokens", [])
    if None in shrinks or not all(_keeps(each) for each in splits) or model.get("type") != "BPE":
        return None
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):  # they swallow the spaces beside them
        return None
    vocabulary = model["vocab"]
    is_byte_level = any(each["type"] == "ByteLevel" for each in splits)
    if is_byte_level and set(pre_tokenizers.ByteLevel.alphabet()) <= vocabulary.keys():
        longest = max(map(len, vocabulary))  # a character a byte
    elif not is_byte_level and model.get("byte_fallback") and vocabulary.keys() >= _BYTE_TOKENS:
        longest = max(_num_bytes(vocabulary), 1)
    else:
        return None
    longest = max(longest, _num_bytes(token["content"] for token in added))
    for shrink in shrinks:
        assert shrink is not None
        longest *= shrink
    return int(longest)


def check_fits(num_bytes: int, most: int | None, max_context: int, field: str) -> None:
    """InvalidArgument if so many bytes of text cannot come to at most `max_context` tokens."""
    if most is not None and num_bytes > max_context * most:
        raise InvalidArgument(
            f"{num_bytes} bytes of text are more than {max_context} tokens, which is what the context holds: at most {most} bytes a token",
            field=field,
        )


def num_sure_bytes(prompt: types_pb2.Prompt) -> int:
    """Bytes of a prompt's text that are certain to be tokenised: a chat template may leave replies out, and spaces around a message."""
    messages = prompt.chat.messages or prompt.continue_from.messages
    texts = [prompt.text, prompt.assistant_prefix, *(message.content.strip() for message in messages if message.role == "user")]
    return _sum_bytes(texts)


def _sum_bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def _num_bytes(tokens: Iterable[str]) -> int:
    return max((len(token.encode("utf-8")) for token in tokens), default=0)


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """A normalizer's or pre-tokenizer's steps, nested sequences unrolled."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for each in part[name] for step in _steps(each, name)]
    return [part]


def _shrink(normalizer: dict[str, Any]) -> int | None:
    """How many bytes of text a byte of its outcome can stand for; None if it may drop any number."""
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"].get("String", "")
        return 1 if 0 < len(pattern.encode()) <= len(normalizer["content"].encode()) else None
    return _SHRINKS.get(normalizer["type"])


def _keeps(split: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer leaves every character in."""
    return split["type"] in _KEEPING or (split["type"] == "Split" and split["behavior"] != "Removed")
