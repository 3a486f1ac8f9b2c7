"""The tokenizer's side of a request: text and conversations to ids, ids to text as they come, stop strings. Knows no engine."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyhead.heads.errors import FailedPrecondition, InvalidArgument
from polyhead.server.continuation import Continuation, Decode

ROLES = ("system", "user", "assistant")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt")
_STAND_IN = "polyhead-stand-in-reply"
_LEAD = 3  # tokens among which a template's end token stands: perhaps a space before it
_HALF_CHARACTER = "\ufffd"  # what a tokenizer writes for bytes that are not a character yet
_LONGEST_WINDOW = 16  # tokens that are decoded again and again
_SHOWN = 60  # characters


class Tokenizer:
    """A checkpoint's tokenizer and chat template, with the meanings that the contract gives them."""

    def __init__(self, tokenizer: Any, sha256: str, vocab_size: int | None = None) -> None:
        """`vocab_size` of the model: a tokenizer may know tokens beyond it. None: no bound."""
        self._tokenizer = tokenizer
        self.sha256 = sha256
        self._vocab_size = vocab_size
        _forget_lengths(tokenizer)

    @classmethod
    def load(cls, folder: Path, vocab_size: int | None = None) -> Tokenizer:
        """Read a local folder; nothing is fetched and no code of the folder's runs."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        digest = hashlib.sha256()
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
        return cls(tokenizer, digest.hexdigest(), vocab_size)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Ids of a text; `special_tokens` adds what the tokenizer puts around one (a BOS, say)."""
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=special_tokens))
        except Exception as error:  # of the Rust library, which has no class for it: no token for unknown text, say
            raise InvalidArgument(f"the model's tokenizer cannot write this text: {str(error)[:200]}") from None

    def encode_after(self, before: Sequence[int], text: str, field: str) -> list[int]:
        """Ids of a text that continues `before`. InvalidArgument names the field if the tokenizer cannot do that."""
        if not self._holds_text(before):
            return self.check_ids(self.encode(text, special_tokens=False), field)
        try:
            ids = self.continuation.encode(text, field)
        except InvalidArgument as error:
            raise InvalidArgument(f"{error.message}\nhint: send token ids instead of text", field=field) from None
        return self.check_ids(ids, field)

    def encode_behind_text(self, text: str, field: str) -> list[int]:
        """The same behind any text whatever."""
        return self.check_ids(self.continuation.encode(text, field), field)

    def decode_after(self, before: Sequence[int]) -> Decode:
        """What turns ids that continue `before` into the text that they add."""
        return self.continuation.decode if self._holds_text(before) else self.decode

    def check_ids(self, ids: list[int], field: str) -> list[int]:
        """Ids that the tokenizer made, or InvalidArgument naming the field: a token that was added to it may be none of the model's."""
        if self._vocab_size is not None and ids and (highest := max(ids)) >= self._vocab_size:
            token = str(self._tokenizer.convert_ids_to_tokens(highest))[:_SHOWN]
            raise InvalidArgument(
                f"the tokenizer writes {token!r} as token {highest}, outside the model's vocabulary of {self._vocab_size}: the model has "
                "never seen it\nhint: leave it out",
                field=field,
            )
        return ids

    def single_token(self, text: str) -> int | None:
        """The id of a text that is one token behind any other, and known to the tokenizer: the unknown token stands for anything.

        A tokenizer of words that cannot write it there has perhaps one for it with its space.
        """
        try:
            ids = self.continuation.encode(text, "text")
        except InvalidArgument:
            ids = self.encode(text, special_tokens=False)
        is_it = len(ids) == 1 and self.decode(ids, skip_special_tokens=False).strip().casefold() == text.strip().casefold()
        return ids[0] if is_it and ids[0] != self._tokenizer.unk_token_id else None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids, with nothing cleaned up."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))

    def encode_chat(self, messages: list[dict[str, str]], field: str) -> list[int]:
        """Ids of a conversation up to where the assistant's reply begins."""
        self._check_messages(messages, field)
        return self.encode(self._render(messages, field), special_tokens=False)

    def encode_next_turns(self, messages: list[dict[str, str]], last_token_id: int, eos_ids: frozenset[int], field: str) -> list[int]:
        """Ids that follow an assistant's reply when `messages` come next; only these turns are rendered.

        The template's own text after a reply is found by rendering a stand-in. A reply has one end: what the template writes up to its
        end token, perhaps a space before it, is left out if the sampled reply ended with that token, or with another EOS in its place.
        """
        self._check_messages(messages, field)
        ids, marks = self._after_reply(messages, field), self._special_ids | eos_ids
        ends = {last_token_id} & marks
        if last_token_id in eos_ids:
            closing = self._after_reply([], field)
            ends.update([token for token in closing[:_LEAD] if token in marks][:1])
        num_left_out = next((index + 1 for index, token in enumerate(ids[:_LEAD]) if token in ends), 0)
        return ids[num_left_out:]

    def encode_from(self, before: list[int], ids: list[int], text: str, field: str) -> list[int]:
        """Ids of `text`, which continues `before`, that begin with `ids` as far as these agree with it; only what is left is tokenised."""
        length, decode = len(ids), self.decode_after(before)
        while not text.startswith(start := decode(ids[:length])):
            length -= 1
        return [*ids[:length], *self.encode_after([*before, *ids[:length]], text[len(start) :], field)]

    def without_end(self, ids: list[int]) -> list[int]:
        """A reply's ids without the special tokens that it ended with, such as an EOS: they are no text."""
        special = self._special_ids
        return ids[: max((index + 1 for index, token in enumerate(ids) if token not in special), default=0)]

    def stream(self, stops: tuple[str, ...], keep_stop: bool, before: Sequence[int] = ()) -> TextStream:
        """A fresh text for one sample, which continues `before`."""
        return TextStream(self.decode, stops, keep_stop, self.continuation.context if self._holds_text(before) else ())

    @functools.cached_property
    def continuation(self) -> Continuation:
        """How this tokenizer writes text behind other text."""
        unknown, backend = self._tokenizer.unk_token_id, getattr(self._tokenizer, "backend_tokenizer", None)
        ordinary = (token for token in range(len(self._tokenizer)) if token not in self._special_ids)
        kind = type(backend.model).__name__ if backend is not None else type(self._tokenizer).__name__
        return Continuation(self, kind=kind, special_ids=self._special_ids - {unknown}, spare_ids=ordinary)

    def _holds_text(self, ids: Sequence[int]) -> bool:
        """Whether anything but special tokens is among them: a BOS alone leaves what follows at the beginning of a text."""
        return any(token not in self._special_ids for token in ids)

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        """All that are no text; `all_special_ids` lists only those with a role (EOS, padding), so not every template's end token."""
        added = self._tokenizer.added_tokens_decoder.items()
        return frozenset(self._tokenizer.all_special_ids) | {token_id for token_id, token in added if token.special}

    def _after_reply(self, messages: list[dict[str, str]], field: str) -> list[int]:
        """Ids that the template writes behind a reply: up to where the next one begins, or, without messages, to close this one."""
        before = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _STAND_IN}]
        _, found, following = self._render(before + messages, field, opens_reply=bool(messages)).partition(_STAND_IN)
        if not found:
            raise FailedPrecondition("the model's chat template rewrites replies, so a conversation cannot be continued from ids")
        return self.continuation.encode(following, field)

    def _render(self, messages: list[dict[str, str]], field: str, opens_reply: bool = True) -> str:
        from jinja2.exceptions import TemplateError

        if not self.has_chat_template:
            raise FailedPrecondition("the model has no chat template: send text or token ids", field=field)
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens_reply))
        except TemplateError as error:
            raise InvalidArgument(f"the model's chat template refuses these messages: {str(error)[:200]}", field=field) from None

    def _check_messages(self, messages: list[dict[str, str]], field: str) -> None:
        if not messages:
            raise InvalidArgument("no messages", field=field)
        for index, message in enumerate(messages):
            if message["role"] not in ROLES:
                raise InvalidArgument(f"unknown role: {message['role'][:40]!r}", field=f"{field}[{index}].role")
        if messages[-1]["role"] == "assistant":
            raise InvalidArgument(
                "the last message is the assistant's own: use assistant_prefix to open a reply", field=f"{field}[{len(messages) - 1}].role"
            )


def _forget_lengths(tokenizer: Any) -> None:
    """Truncation and padding that a training left in `tokenizer.json`: a text would lose its end, or get one."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()


class TextStream:
    """A sample's text, as its ids come. Holds back half characters, and text that may turn out to begin a stop string.

    >>> stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), stops=("END",), keep_stop=False)
    >>> [stream.push(byte) for byte in "é EN".encode()]
    ['', 'é', ' ', '', '']
    >>> stream.push(ord("D")), stream.matched_stop, stream.text
    ('', 'END', 'é ')
    """

    def __init__(self, decode: Decode, stops: tuple[str, ...], keep_stop: bool, context: Sequence[int] = ()) -> None:
        """The sample's ids are decoded behind those of `context`, whose text is not the sample's."""
        self.text = ""
        self.matched_stop = ""
        self._decode = decode
        self._stops = stops
        self._stop_starts = {stop[:length] for stop in stops for length in range(1, len(stop))}
        self._longest_start = max(map(len, self._stop_starts), default=0)
        self._keep_stop = keep_stop
        self._ids = list(context)
        self._window_from = 0  # ids from here on are decoded again, for the context that joins words
        self._whole_to = len(context)  # ids up to here make whole characters
        self._num_taken = len(decode(context)) if context else 0  # characters of the window that are in `text`, or before it
        self._num_given = 0  # characters handed out

    def push(self, token_id: int) -> str:
        """Take one more id and return the new text that is certain."""
        self._ids.append(token_id)
        window = self._decode(self._ids[self._window_from :])
        num_before = self._num_taken
        certain = len(window.rstrip(_HALF_CHARACTER))  # an unfinished character is one mark, or one for each of its bytes
        self._take_up_to(window, certain)
        if certain == len(window) == num_before > 0:
            del self._ids[self._whole_to :]  # a special token says nothing: the context before it is the next one's, too
        elif certain == len(window):
            self._window_from, self._whole_to = self._whole_to, len(self._ids)
            self._num_taken = len(self._decode(self._ids[self._window_from :]))
        elif (len(self._ids) - self._whole_to) % _LONGEST_WINDOW == 0:
            self._shorten(window)
        return self._give(len(self.text) if self.matched_stop else len(self.text) - self._num_doubtful())

    def finish(self) -> str:
        """Return the text that was held back; nothing follows."""
        if not self.matched_stop:
            window = self._decode(self._ids[self._window_from :])
            self._take_up_to(window, len(window))
        return self._give(len(self.text))

    def _take_up_to(self, window: str, end: int) -> None:
        if end > self._num_taken:
            self._extend(window[self._num_taken : end])
            self._num_taken = end

    def _shorten(self, window: str) -> None:
        """Bytes that never make a character would let the window grow without end: cut it between two characters."""
        for cut in range(len(self._ids) - 4, self._window_from, -1):  # a character has at most 4 tokens
            head, rest = self._decode(self._ids[self._window_from : cut]), self._decode(self._ids[cut:])
            if head + rest == window:
                self._take_up_to(window, len(head))
                self._window_from = self._whole_to = cut
                self._num_taken -= len(head)
                return

    def _extend(self, new: str) -> None:
        """Add text and cut at the earliest stop string, the longest of those that begin at one place."""
        searched = max(0, len(self.text) - max((len(stop) for stop in self._stops), default=0))
        self.text += new
        places = [(self.text.find(stop, searched), -len(stop), stop) for stop in self._stops]
        found = min((place for place in places if place[0] >= 0), default=None)
        if found is not None:
            start, _, self.matched_stop = found
            self.text = self.text[: start + len(self.matched_stop) if self._keep_stop else start]

    def _num_doubtful(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(self._longest_start, len(self.text))
        return next((length for length in range(longest, 0, -1) if self.text[-length:] in self._stop_starts), 0)

    def _give(self, end: int) -> str:
        given = self.text[self._num_given : end]
        self._num_given = max(self._num_given, end)
        return given
