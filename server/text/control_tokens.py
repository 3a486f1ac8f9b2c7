"""Control tokens: those that a tokenizer marks special. In what people write they are text; only a template's own are tokens.

A content's control tokens are broken by a character that no content holds, so what still reads as one in the rendered text is the
template's. That one goes to the tokenizer under a name that no text can hold, in a copy of the tokenizer that has no other control token:
the whole is tokenised at once, as ever, and a user's `<|im_end|>` is a few tokens of text in it.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from polyhead.heads.format.errors import InvalidArgument

_BREAKERS = range(0xE000, 0xF900)  # characters for private use
_SECRET = range(0xF0000, 0xFFFFE)  # the same, of another plane: three of them and one that counts name a control token
_UNLIKELY = -1e6  # log-prob of a piece that is not taken where there is another way through the text

Encode = Callable[[str], list[int]]  # a template's own control tokens, under their secret names, come back as -1 - id


class ControlTokens:
    """A tokenizer's special tokens, and texts in which those that people write stay text."""

    def __init__(
        self, ids: Mapping[str, int], added: Iterable[str], names: Mapping[str, str], encode: Encode, forgeable: Iterable[int]
    ) -> None:
        self.ids = dict(ids)  # by what is written for them
        self._names = dict(names)  # their secret names
        self._encode = encode
        self._forgeable = frozenset(forgeable)  # ids that no text may come to
        self._added = _any_of({*added, *ids})
        self._control = _any_of(ids)
        self._longest = max(map(len, ids), default=0)
        self._starts = frozenset(text[:length] for text in ids for length in range(2, len(text)))
        self._ends = frozenset(text[length:] for text in ids for length in range(1, len(text) - 1))

    @classmethod
    def of(cls, tokenizer: Any) -> ControlTokens:
        """Of a transformers tokenizer. The copy shares the vocabulary of the original."""
        added = tokenizer.added_tokens_decoder
        roles = set(tokenizer.all_special_ids)
        control = {each.content: token for token, each in added.items() if (each.special or token in roles) and len(each.content) > 1}
        secret = "".join(chr(secrets.choice(_SECRET)) for _ in range(3))
        names = {text: secret + chr(_SECRET[index]) for index, text in enumerate(control)}
        others = {each.content: token for token, each in added.items() if each.content and each.content not in control}
        if tokenizer.is_fast:
            encode = _by_copy(tokenizer.backend_tokenizer, added, control, names)
        else:
            encode = _by_piece(tokenizer, added, control, names)
        return cls(control, others, names, encode, set(control.values()) - {tokenizer.unk_token_id})

    def first_in(self, text: str) -> str:
        """The first control token that a text holds, "" if there is none."""
        found = self._control.search(text)
        return found[0] if found else ""

    def breaker(self, contents: Iterable[str]) -> str:
        """A character that none of them holds; "" if they hold no control token, and no part of one that could join with more text."""
        contents = list(contents)
        if not any(self._is_risky(content) for content in contents):
            return ""
        used = set().union(*contents)
        return next(chr(code) for code in _BREAKERS if chr(code) not in used)

    def broken(self, content: str, breaker: str) -> str:
        """A content without a whole control token in it, and without an end that more text could make one."""
        if not breaker:
            return content
        while self._control.search(content):  # again, where one begins inside another
            content = self._control.sub(lambda found: found[0][0] + breaker + found[0][1:], content)
        if self._begins_one(content):
            content = content[:-1] + breaker + content[-1]
        if self._ends_one(content):
            content = content[0] + breaker + content[1:]
        return content

    def encode(self, text: str, breaker: str, field: str) -> list[int]:
        """Ids of a template's text with broken contents in it, and no special tokens around it.

        InvalidArgument names the field if the tokenizer makes a control token even of the parts of one.
        """
        text = self._added.sub(lambda found: self._names.get(found[0], found[0]), text)
        ids = self._encode(text.replace(breaker, ""))
        if not self._forgeable.isdisjoint(ids):  # a control token is a word of the model's own vocabulary: its parts are tokenised apart
            ids = [token for part in text.split(breaker) for token in self._encode(part)]
        if forged := self._forgeable.intersection(ids):
            name = next(text for text, token in self.ids.items() if token in forged)
            raise InvalidArgument(
                f"the tokenizer makes a control token of this text, however it is spelled: {name!r}", field=field
            )
        return [-1 - token if token < 0 else token for token in ids]

    def _is_risky(self, content: str) -> bool:
        return self._control.search(content) is not None or self._begins_one(content) or self._ends_one(content)

    def _begins_one(self, content: str) -> bool:
        """Whether its last characters, two or more, begin a control token."""
        return any(content[-length:] in self._starts for length in range(2, min(self._longest, len(content) + 1)))

    def _ends_one(self, content: str) -> bool:
        """Whether its first characters, two or more, end a control token."""
        return any(content[:length] in self._ends for length in range(2, min(self._longest, len(content) + 1)))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """The longest that begins at a place, as tokenizers match them; no match at all if there are none.

    By common beginnings: a thousand alternatives one after the other took ten seconds for 400 kB of "<".
    """

    def ways(ends: set[str]) -> str:
        heads: dict[str, set[str]] = {}
        for end in ends - {""}:
            heads.setdefault(end[0], set()).add(end[1:])
        options = [re.escape(head) + ways(rest) for head, rest in sorted(heads.items())]
        is_whole = "" in ends  # what was matched so far is one of them
        return f"(?:{'|'.join(options)})" + "?" * is_whole if len(options) > 1 or (options and is_whole) else "".join(options)

    return re.compile(ways(set(texts)) or "(?!)")


def _by_copy(backend: Any, added: Mapping[int, Any], control: Mapping[str, int], names: Mapping[str, str]) -> Encode:
    """With a copy of a fast tokenizer: shared vocabulary, own added tokens. The original is in use elsewhere: none of its flags is set."""
    from tokenizers import AddedToken, Tokenizer

    copy = Tokenizer(_without_pieces(backend, control))
    if backend.normalizer is not None:
        copy.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        copy.pre_tokenizer = backend.pre_tokenizer
    known: dict[str, int] = {}
    tokens = []
    for token, each in sorted(added.items()):
        if not each.content:
            continue
        name = names.get(each.content, each.content)
        known[name] = -1 - token if each.content in control else token
        is_kept = backend.normalizer is None or name in backend.normalizer.normalize_str(name)
        flags = {"single_word": each.single_word, "lstrip": each.lstrip, "rstrip": each.rstrip}
        tokens.append(AddedToken(name, normalized=each.normalized and is_kept, special=False, **flags))
    copy.add_tokens(tokens)
    real = {copy.token_to_id(name): token for name, token in known.items()}
    return lambda text: [real.get(token, token) for token in copy.encode(text, add_special_tokens=False).ids]


def _without_pieces(backend: Any, control: Mapping[str, int]) -> Any:
    """The model. A Unigram model that has control tokens among its pieces would take them: in its copy they are the last choice."""
    from tokenizers import models

    if not isinstance(backend.model, models.Unigram) or not any(backend.model.token_to_id(text) is not None for text in control):
        return backend.model
    plain = json.loads(backend.to_str())["model"]
    unknown = plain["unk_id"]
    pieces = [(text, _UNLIKELY if text in control and at != unknown else score) for at, (text, score) in enumerate(plain["vocab"])]
    return models.Unigram(vocab=pieces, unk_id=unknown, byte_fallback=plain.get("byte_fallback", False))


def _by_piece(tokenizer: Any, added: Mapping[int, Any], control: Mapping[str, int], names: Mapping[str, str]) -> Encode:
    """With a tokenizer written in Python, which has no copy: the text between added tokens, piece by piece."""
    known: dict[str, int] = {}
    shapes: dict[str, str] = {}
    for token, each in added.items():
        if each.content:
            name = names.get(each.content, each.content)
            known[name] = -1 - token if each.content in control else token
            shapes[name] = r"\s*" * each.lstrip + re.escape(name) + r"\s*" * each.rstrip
    pattern = re.compile("(" + ("|".join(shapes[name] for name in sorted(shapes, key=len, reverse=True)) or "(?!)") + ")")
    plain = functools.partial(tokenizer.encode, add_special_tokens=False, split_special_tokens=True)

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(pattern.split(text)):  # texts, and the added tokens between them
            if piece:
                ids += [known[piece if piece in known else piece.strip()]] if index % 2 else plain(piece)
        return ids

    return encode
